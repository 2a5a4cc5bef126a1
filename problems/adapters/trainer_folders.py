"""Where trainers put experts: in their output folder, and in a checkpoint every so many steps.

peft, TRL, unsloth, axolotl and LLaMA-Factory write the adapter into the output folder when they
end, beside folders `checkpoint-N`. ms-swift leaves checkpoints only, in a folder per run such as
`v0-20250102-030405`. The hub repository of the paper holds `base/` and `experts/NAME/`. An expert
is an adapter or a whole model.
"""

import json
import re
from pathlib import Path

from evox_evogm.near_path import near_path
from evox_evogm.problems.adapters.adapter_config import CONFIG, WEIGHTS
from evox_evogm.problems.checkpoints.checkpoint_files import MODEL_CONFIG, is_checkpoint

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
RUN = re.compile(r"v(\d+)-\d{8}-\d{6}")  # of ms-swift
EXPERTS = "experts"  # the folder of experts beside `base`
BASE = "base"  # which is a whole model, and no expert
STATE = "trainer_state.json"


def adapter_in(folder: Path, *, whole: bool = True) -> Path:
    """The folder of the adapter or whole model that a trainer wrote to a folder.

    :param folder: its output folder, or an expert.
    :param whole: whether an adapter without weights is passed over where a checkpoint has some.
    :return: the folder itself, or the last checkpoint in it. Where there is no adapter it is the
        folder, so that reading it says what is wrong.
    """
    if (folder / CONFIG).is_file() and (not whole or (folder / WEIGHTS).is_file()):
        return folder
    if whole and is_checkpoint(folder):
        return folder
    return last_checkpoint(folder) or folder


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest number, of the last run of ms-swift, or None."""
    for place in (folder, *reversed(_numbered(folder, RUN))):
        checkpoints = checkpoints_in(place)
        if checkpoints:
            return checkpoints[-1]
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """The adapters and whole models among a folder's checkpoints, in the order of their numbers."""
    return [path for path in _numbered(folder, CHECKPOINT) if is_expert(path)]


def is_expert(folder: Path) -> bool:
    """Whether a folder holds an adapter or a whole model."""
    return (folder / CONFIG).is_file() or is_checkpoint(folder)


def adapters_in(parent: Path, *, whole: bool = True) -> dict[str, Path]:
    """The experts in a folder by name, each in a folder of its own.

    :param parent: a folder of experts and output folders of trainers, or one that has them in a
        folder `experts`.
    :param whole: as in `adapter_in`.
    :raises ValueError: if it holds none, or is an adapter itself or the output of one training.
    """
    if (parent / CONFIG).is_file():  # its checkpoints would be taken for experts
        expected = f"expected a folder of adapter folders in {parent}"
        raise ValueError(
            f"experts: {expected}, found an adapter itself; give a list of adapter folders"
        )
    if whole and is_checkpoint(parent):
        raise ValueError(
            f"experts: expected a folder of folders in {parent}, found a model itself; give a list"
        )
    if last_checkpoint(parent) is not None:
        expected = f"expected a folder of adapter folders in {parent}"
        raise ValueError(
            f"experts: {expected}, found the checkpoints of one training; a list with this folder "
            "takes the last of them"
        )
    found = list_adapters(parent, whole=whole)
    if not found:
        expected = f"expected adapter folders with {CONFIG} in {parent}"
        nothing = "none" if parent.is_dir() else f"no such folder{near_path(parent)}"
        nothing = "a file" if parent.is_file() else nothing
        raise ValueError(f"experts: {expected}, found {nothing}")
    return {child.name: folder for child, folder in found.items()}


def list_adapters(parent: Path, *, whole: bool = True) -> dict[Path, Path]:
    """The adapters and whole models in the folders of a folder, or of its folder `experts`.

    :param whole: as in `adapter_in`. Without it whole models are passed over.
    :return: by each folder what `adapter_in` takes of it.
    """
    for place in (parent, parent / EXPERTS):
        found = _adapters_of(place, whole)
        if found:
            return found
    return {}


def note_on_checkpoint(folder: Path, name: str, where: str) -> str | None:
    """What to tell where an expert is the last checkpoint of a training, or None.

    :param folder: of the adapter.
    :param name: of the expert. Where it is that of the checkpoint nothing was chosen.
    :param where: the adapter as messages name it.
    """
    if CHECKPOINT.fullmatch(folder.name) is None or name == folder.name:
        return None
    checkpoints = checkpoints_in(folder.parent)
    if not checkpoints or checkpoints[-1] != folder:
        return None
    best = _best_checkpoint(folder)
    better = "" if best in (None, folder.name) else f"; the trainer found {best} to be the best"
    return f"{where}: took {folder.name}, the last of {len(checkpoints)}{better}"


def _adapters_of(parent: Path, whole: bool) -> dict[Path, Path]:
    found = {}
    if parent.is_dir():
        for child in sorted(parent.iterdir()):
            folder = adapter_in(child, whole=whole)
            # Without weights, which are not fetched yet, a configuration stands for a model.
            is_model = is_checkpoint(folder) if whole else (folder / MODEL_CONFIG).is_file()
            if (is_model and child.name != BASE) or (folder / CONFIG).is_file():
                found[child] = folder
    return found


def _numbered(folder: Path, pattern: re.Pattern) -> list[Path]:
    """The folders in a folder whose names match, by the numbers in them."""
    found = []
    if folder.is_dir():
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match is not None and path.is_dir():
                found.append((int(match[1]), path.name, path))
    return [path for _, _, path in sorted(found)]


def _best_checkpoint(folder: Path) -> str | None:
    """The name of the checkpoint that the trainer found to be the best, or None."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        best = state["best_model_checkpoint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(best, str):
        return None
    name = re.split(r"[/\\]", best.rstrip("/\\"))[-1]
    there = CHECKPOINT.fullmatch(name) and (folder.parent / name).is_dir()
    return name if there else None
