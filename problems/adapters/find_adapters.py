"""From what a user names to folders of experts: a folder, what a trainer wrote, or a hub id."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from evox_evogm.problems.adapters.adapter_config import CONFIG, WEIGHTS
from evox_evogm.problems.adapters.hub_source import (
    BESIDE,
    HubSource,
    fetch,
    how_to_download,
    is_offline,
    parse_hub_source,
    source_of_folder,
)
from evox_evogm.problems.adapters.trainer_folders import adapter_in, adapters_in
from evox_evogm.problems.checkpoints.checkpoint_files import MODEL_CONFIG
from evox_evogm.problems.checkpoints.hub_checkpoints import fetch_checkpoint, has_model_config

# What is read of an adapter, and of its repository.
FILES = (CONFIG, WEIGHTS, *BESIDE)
MISPLACED = re.compile(r"\w[\w.-]*/[\w.-]+/[^@]+@[^@]+")  # a revision at the end
LISTED = 6  # folders that an error message names


def find_adapter(
    source, where: str, folder: Path = Path(), commits: Mapping[str, str] | None = None
) -> Path:
    """The folder of an adapter or a whole model.

    :param source: a folder with one of them, the output folder of a trainer, or a hub id, see
        `hub_source.py`. A folder that is there is taken before the hub is asked.
    :param where: the adapter as error messages name it.
    :param folder: the folder that relative paths start from.
    :param commits: known commits of repositories, by what `HubSource.at_revision` gives.
    :return: the folder, which is not read yet. It need not be there if the source is a path.
    :raises ValueError: if the hub does not have it, in one sentence.
    """
    repository = _on_hub(source, folder)
    if repository is None:
        local = folder / Path(str(source))
        if MISPLACED.fullmatch(str(source)) and not local.exists():
            expected = "expected a folder, or a hub id as owner/name@revision/folder"
            raise ValueError(f"{where}: {expected}, found {str(source)!r}")
        return adapter_in(local)
    repository = repository.pinned(commits or {})
    local = _fetch_configurations(repository, where)
    chosen = adapter_in(local, whole=False)
    if not (chosen / CONFIG).is_file():
        if not has_model_config(repository, where):
            found = _adapters_of(repository, where)
            raise ValueError(f"{where}: expected {CONFIG} in {repository}, found {found}")
        chosen = local
    _fetch_expert(chosen, local, repository, where)
    return chosen


def holds_adapter(source: str, where: str) -> bool:
    """Whether a hub id stands for one adapter or whole model, not for a repository of several.

    :param where: the adapter as error messages name it.
    :raises ValueError: if the hub does not have it, or the text is no hub id.
    """
    repository = parse_hub_source(source)
    if repository is None:
        raise ValueError(f"{where}: expected a hub id, found {source!r}")
    local = _fetch_configurations(repository, where)
    if (adapter_in(local, whole=False) / CONFIG).is_file():
        return True
    return has_model_config(repository, where)


def find_adapters(
    source, folder: Path = Path(), commits: Mapping[str, str] | None = None
) -> dict[str, Path]:
    """The folders of several experts by name, from one folder or repository that holds them.

    :param source: a folder of adapters and whole models, or the hub id of a repository of these.
        They may be in its folder `experts`.
    :param folder: the folder that relative paths start from.
    :param commits: as in `find_adapter`.
    :raises ValueError: if there is none, in one sentence.
    """
    repository = _on_hub(source, folder)
    if repository is None:
        return adapters_in(folder / Path(str(source)))
    repository = repository.pinned(commits or {})
    local = _fetch_configurations(repository, "experts", f"*/{MODEL_CONFIG}")
    found = adapters_in(local, whole=False)
    for name, chosen in found.items():
        _fetch_expert(chosen, local, repository, f"expert {name!r} ({repository})")
    return found


def name_of_source(source, folder: Path = Path()) -> str:
    """The name of an expert that was given none: the last part of its path or hub id.

    :param folder: the folder that relative paths start from.
    """
    repository = _on_hub(source, folder)
    if repository is None:
        return Path(str(source)).name
    return (repository.folder or repository.repository).rpartition("/")[2]


def _on_hub(source, folder: Path) -> HubSource | None:
    """What a source is on the hub, or None if it is a path, as a `Path` always is."""
    return parse_hub_source(source, folder) if isinstance(source, str) else None


def _fetch_configurations(source: HubSource, where: str, *more: str) -> Path:
    """Have all adapter configurations of a repository in the cache, which are small.

    :param more: patterns of other files.
    :return: the folder of the source in the snapshot.
    """
    return fetch(source, [CONFIG, f"*/{CONFIG}", *more], where) / source.folder


def _fetch_expert(chosen: Path, local: Path, source: HubSource, where: str) -> None:
    """Have the files of one adapter or whole model in the cache.

    :param chosen: its folder in the snapshot.
    :param local: the folder of the source in the snapshot.
    :param source: what was asked for.
    """
    at_commit = source_of_folder(local)
    commit = None if at_commit is None else at_commit.revision
    exact = HubSource(source.repository, source.folder, commit).inside(
        chosen.relative_to(local).as_posix()
    )
    if not (chosen / CONFIG).is_file():
        return fetch_checkpoint(exact, chosen, where)
    fetch(exact, FILES, where)
    if not (chosen / WEIGHTS).is_file():
        advice = "take an adapter that was saved as safetensors"
        if is_offline():
            advice = f"HF_HUB_OFFLINE is set; where there is a network: {how_to_download(source)}"
        raise ValueError(f"{where}: expected {WEIGHTS} in {exact}, found none; {advice}")


def _adapters_of(source: HubSource, where: str) -> str:
    """What a repository has in place of an adapter, and what to give instead."""
    top = _fetch_configurations(replace(source, folder=""), where)
    inside = []
    for path in sorted(top.rglob(CONFIG)):
        inside.append(path.parent.relative_to(top).as_posix())
    if not inside:
        return "none; is it an adapter of peft?"
    more = ", ..." if len(inside) > LISTED else ""
    return f"adapters in its folders {', '.join(inside[:LISTED])}{more}; give one of these"
