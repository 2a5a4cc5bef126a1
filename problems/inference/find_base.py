"""Where a base is: a folder, a hub id with a revision, or the folder `base` beside experts."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from evox_evogm.problems.adapters.hub_source import HubSource, fetch, parse_hub_source
from evox_evogm.problems.adapters.trainer_folders import EXPERTS

MODEL_CONFIG = "config.json"
BASE = "base"  # the folder of the model beside `experts`
# What transformers reads of a causal language model; no pickles.
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "README.md", "LICENSE*")


class FoundBase(NamedTuple):
    """What transformers loads a base from.

    :param source: a folder or a hub id.
    :param revision: of the hub id; None for its main branch.
    """

    source: str | Path
    revision: str | None = None


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
    if not hub.folder and _has_file(hub, f"{BASE}/{MODEL_CONFIG}", without=MODEL_CONFIG):
        hub = hub.inside(BASE)
    if not hub.folder:
        return FoundBase(hub.repository, hub.revision)
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
        return str(replace(hub, folder=parent).inside(BASE))
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
    return hub is not None and _can_be_had(hub, f"{hub.folder}/{MODEL_CONFIG}".lstrip("/"))


def _has_file(source: HubSource, name: str, *, without: str) -> bool:
    """Whether a repository has a file, and not another one; asked where it can be reached."""
    return not _can_be_had(source, without) and _can_be_had(source, name)


def _can_be_had(source: HubSource, name: str) -> bool:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(source.repository, name, revision=source.revision, etag_timeout=3)
    except Exception:  # no network, no such file or repository; transformers says which
        return False
    return True
