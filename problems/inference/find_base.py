"""Where a base is: a folder, a hub id with a revision, or the folder `base` beside experts."""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from evox_evogm.problems.adapters.hub_source import (
    HubSource,
    fetch,
    name_like,
    parse_hub_source,
    source_of_folder,
)
from evox_evogm.problems.adapters.trainer_folders import EXPERTS
from evox_evogm.problems.checkpoints.checkpoint_files import MODEL_CONFIG

SMOLLM2 = "smollm2-135m-instruct"  # the name of the packaged model in settings
BASE = "base"  # the folder of the model beside `experts`
MARK = "_evogm_commit"  # the attribute of a loaded model
COMMIT = re.compile(r"[0-9a-f]{40}")
WORD = re.compile(r"\w[\w.-]*")  # a folder, or a model of the hub without owner, such as gpt2
# What transformers reads of a causal language model; no pickles.
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "README.md", "LICENSE*")


class FoundBase(NamedTuple):
    """What transformers loads a base from.

    :param source: a folder or a hub id.
    :param revision: of the hub id: its commit, where it is known; None for its main branch.
    """

    source: str | Path
    revision: str | None = None

    def mark(self, model: torch.nn.Module) -> None:
        """Write the commit on a loaded model, where `source_of_model` finds it."""
        if self.revision is not None and COMMIT.fullmatch(self.revision):
            setattr(model, MARK, self.revision)


def find_base(base: str | Path) -> FoundBase:
    """Where transformers finds a base.

    :param base: a folder, or a hub id, see `hub_source.py`. Where it holds no model itself, but a
        folder `base` with one, as repositories of experts do, that folder is meant.
    :raises ValueError: if the hub does not have it, in one sentence.
    """
    folder = Path(base)
    if folder.is_dir():
        inside = folder / BASE
        beside = not (folder / MODEL_CONFIG).is_file() and (inside / MODEL_CONFIG).is_file()
        return FoundBase(inside if beside else base)
    hub = parse_hub_source(base) if isinstance(base, str) else None
    if hub is None:
        return FoundBase(base)
    at_top = None if hub.folder else _download(hub, MODEL_CONFIG)
    if not hub.folder and at_top is None and _download(hub, f"{BASE}/{MODEL_CONFIG}"):
        hub = hub.inside(BASE)
    if not hub.folder and not Path(hub.repository).exists():
        exact = None if at_top is None else source_of_folder(at_top.parent)
        return FoundBase(hub.repository, hub.revision if exact is None else exact.revision)
    patterns = [*FILES, "/README.md", "/LICENSE*"]
    snapshot = fetch(hub, patterns, "base", ignore=["*/*"])
    if not (snapshot / hub.folder / MODEL_CONFIG).is_file():
        advice = "name the base model in the settings"
        raise ValueError(f"base: expected a model in {hub}, found no {MODEL_CONFIG}; {advice}")
    return FoundBase(snapshot / hub.folder)


def base_beside(experts: str, folder: Path) -> str | None:
    """The base that lies beside experts in one folder or repository, as settings name it.

    :param experts: a folder or a hub id: the parent of `base` and `experts`, or its `experts`.
    :param folder: the folder that relative paths start from.
    :return: None where there is no such folder. A repository is not looked into.
    """
    hub = parse_hub_source(experts, folder)
    if hub is not None:
        parent = hub.folder.removesuffix(EXPERTS).rstrip("/")
        return name_like(replace(hub, folder=parent).inside(BASE), experts)
    parents = [Path(experts)]
    if parents[0].name == EXPERTS:
        parents.append(parents[0].parent)
    for parent_folder in parents:
        if (folder / parent_folder / BASE / MODEL_CONFIG).is_file():
            return (parent_folder / BASE).as_posix()
    return None


def has_model(base: str) -> bool:
    """Whether a hub id stands for a folder with a model; False where it cannot be asked."""
    hub = parse_hub_source(base)
    if hub is None:
        return False
    return _download(hub, f"{hub.folder}/{MODEL_CONFIG}".lstrip("/")) is not None


def hub_source_of(base: str, folder: Path = Path()) -> HubSource | None:
    """Where on the hub a base is, also of an old id without an owner, such as `gpt2`.

    :param folder: that of the settings, for relative paths.
    :return: None if the base cannot be a hub id.
    """
    hub = parse_hub_source(base, folder)
    if hub is None and WORD.fullmatch(base) is not None:
        hub = HubSource(base)
    return hub


def config_folder(base: str) -> Path | None:
    """The folder with the `config.json` of a base; of the hub nothing else is downloaded.

    :return: None where there is none, or where it cannot be had.
    """
    folder = Path(base)
    if folder.is_dir():
        places = [folder, folder / BASE]
        return next((place for place in places if (place / MODEL_CONFIG).is_file()), None)
    hub = hub_source_of(base)
    if hub is None:
        return None
    for place in (hub.folder, f"{hub.folder}/{BASE}"):
        found = _download(hub, f"{place}/{MODEL_CONFIG}".lstrip("/"))
        if found is not None:
            return found.parent
    return None


def source_of_model(model: torch.nn.Module) -> HubSource | None:
    """What a loaded base is on the hub, at its commit; None of a folder of this machine.

    :param model: as `load_base` gives it. That of others is known by the folder it came from.
    """
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    commit = getattr(model, MARK, None)
    return source_of_folder(name) if commit is None else HubSource(name, "", commit)


def revision_of(base: str, model: torch.nn.Module) -> str | None:
    """The commit of a loaded base, if a name stands for its repository."""
    source = source_of_model(model)
    same = source is not None and str(replace(source, revision=None)) == base
    return source.revision if same and source is not None else None


def _download(source: HubSource, name: str) -> Path | None:
    """A file of a repository in the hub's cache, or None where it cannot be had."""
    from huggingface_hub import hf_hub_download

    revision = source.revision
    try:
        return Path(hf_hub_download(source.repository, name, revision=revision, etag_timeout=3))
    except Exception:  # no network, no such file or repository; transformers says which
        return None
