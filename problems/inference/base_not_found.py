"""Why a base cannot be found: it is neither a folder, nor in the hub's cache, nor on the hub."""

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from evox_evogm.near_path import near_path
from evox_evogm.problems.adapters.hub_source import (
    HubSource,
    fetch,
    how_to_download,
    is_offline,
)
from evox_evogm.problems.checkpoints.checkpoint_files import MODEL_CONFIG
from evox_evogm.problems.inference.find_base import SMOLLM2, config_folder, hub_source_of

CACHED = "models--"  # begins the name of a repository's folder in the hub's cache


class NotFound(NamedTuple):
    """Why a base cannot be found.

    :param reason: in words, with the name that was probably meant.
    :param is_certain: whether it is nowhere; False where the hub could not be reached.
    """

    reason: str
    is_certain: bool

    def sentence(self, base: str) -> str:
        """The words of an error, with the base as its user names it."""
        return f"base: expected a transformers folder or hub id, found {base!r}: {self.reason}"


def why_not_found(base: str, folder: Path = Path()) -> NotFound | None:
    """Why a base cannot be found, or None. Nothing but its configuration is downloaded.

    :param base: a folder, a hub id, or the name of the packaged model.
    :param folder: that relative paths start from; those of the process are found too.
    """
    place = folder / base
    if base == SMOLLM2 or place.is_dir() or Path(base).is_dir():
        return None
    if place.exists() or Path(base).exists():
        return NotFound("a file; give the folder of the model", is_certain=True)
    near_folder = near_path(place)
    hub = hub_source_of(base, folder)
    if hub is None:
        return NotFound(f"no such folder{near_folder}", is_certain=True)
    if config_folder(base) is not None:
        return None
    try:
        fetch(replace(hub, folder=""), [MODEL_CONFIG], "base")
    except ValueError as error:
        return _of_hub(hub, error.__cause__, near_folder)
    return None  # the repository is there, and transformers says what it lacks


def check_found(base: str, folder: Path = Path()) -> None:
    """Refuse a base that cannot be found, see `why_not_found`.

    :raises ValueError: in one sentence.
    """
    not_found = why_not_found(base, folder)
    if not_found is not None:
        raise ValueError(not_found.sentence(base))


def _of_hub(hub: HubSource, error: BaseException | None, near_folder: str) -> NotFound | None:
    """Why a repository cannot be found; None where it is there, and something else is wrong.

    :param error: of huggingface_hub.
    :param near_folder: a hint at a folder, or nothing.
    """
    from huggingface_hub import errors

    if isinstance(error, (errors.GatedRepoError, errors.RevisionNotFoundError)):
        return None
    if near_folder:
        return NotFound(f"no such folder{near_folder}", is_certain=True)
    near = near_model(hub.repository)
    if isinstance(error, errors.RepositoryNotFoundError):
        reason = f"neither a folder nor a repository that you may read{near}"
        return NotFound(reason, is_certain=True)
    if not isinstance(error, (errors.LocalEntryNotFoundError, OSError)):
        return None
    why = "HF_HUB_OFFLINE is set" if is_offline() else "the hub cannot be reached"
    advice = f"where there is a network: {how_to_download(hub)}"
    reason = f"neither a folder nor in the hub's cache, and {why}{near}; {advice}"
    return NotFound(reason, is_certain=False)


def near_model(name: str) -> str:
    """`"; did you mean 'Qwen/Qwen3-4B'?"`, of the models on this machine, or nothing.

    :param name: with its owner or without.
    """
    names = {SMOLLM2: SMOLLM2}
    for repository in cached_models():
        names[repository.lower()] = repository
        names.setdefault(repository.rpartition("/")[2].lower(), repository)
    near = get_close_matches(name.lower(), names, 1, cutoff=0.75)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def cached_models() -> list[str]:
    """The repositories of models in the hub's cache."""
    from huggingface_hub import constants

    names = []
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob(f"{CACHED}*")):
        names.append(folder.name.removeprefix(CACHED).replace("--", "/", 1))
    return names
