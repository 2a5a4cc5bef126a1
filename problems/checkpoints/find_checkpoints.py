"""How whole models differ from another one, without loading any."""

from pathlib import Path
from typing import NamedTuple

from evox_evogm.problems.checkpoints.checkpoint_files import CheckpointFiles, holds_same
from evox_evogm.problems.checkpoints.full_checkpoint import megabytes


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
