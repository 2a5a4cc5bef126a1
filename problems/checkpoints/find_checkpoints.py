"""Whole models in folders, and how they differ from another one, without loading any."""

from pathlib import Path
from typing import NamedTuple

from evox_evogm.problems.adapters.read_adapter import CONFIG
from evox_evogm.problems.checkpoints.checkpoint_files import (
    CheckpointFiles,
    holds_same,
    is_checkpoint,
)
from evox_evogm.problems.checkpoints.full_checkpoint import megabytes

BASE = "base"  # the folder of the base beside those of experts


def checkpoints_in(folder: Path) -> dict[str, Path]:
    """The whole models in a folder by name; none where it holds adapters, or is a model itself.

    :param folder: of folders. One that is called `base` is none of the experts.
    """
    if any(folder.glob(f"*/{CONFIG}")) or is_checkpoint(folder):
        return {}
    found = {}
    for path in sorted(folder.glob("*/config.json")):
        if is_checkpoint(path.parent) and path.parent.name != BASE:
            found[path.parent.name] = path.parent
    return found


class Compared(NamedTuple):
    """How two models differ.

    :param differing: the number of tensors.
    :param compared: the number of tensors that both have.
    :param bytes: the size of those that differ.
    """

    differing: int
    compared: int
    bytes: int

    def words(self) -> str:
        """The same on one line."""
        return (
            f"{self.differing} of {self.compared} tensors differ from the base, "
            f"{megabytes(self.bytes)} of differences"
        )


def compare_files(folder: Path, base: Path) -> Compared:
    """Compare the files of a model with those of a base, tensor by tensor.

    :raises ValueError: if one of them cannot be read.
    """
    own = CheckpointFiles(folder, str(folder))
    other = CheckpointFiles(base, str(base))
    differing, compared, size = 0, 0, 0
    for name in own.stored:
        if name not in other.stored:
            continue
        compared += 1
        tensor = own.tensor(name)
        if not holds_same(tensor, other.tensor(name)):
            differing += 1
            size += tensor.nbytes
    return Compared(differing, compared, size)
