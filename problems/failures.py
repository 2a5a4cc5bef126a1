"""Errors of problems: no point of a population has a fitness, or a rank or the device is gone."""

import torch

# The words of the CPU, of CUDA outside torch's allocator, and of its libraries such as cuBLAS.
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_ALLOC_FAILED")


class AllFailed(RuntimeError):
    """Every merge of a population failed.

    `DistributedProblem` takes the fitness from it: where the share of one rank failed, the other
    shares decide whether the population has failed. A problem of your own may raise it too.

    :param fitness: a `(P,)` or `(P, M)` tensor: what `evaluate` would return for these merges if
        others beside them had scores.
    :param reason: why the first merge failed.
    """

    def __init__(self, fitness: torch.Tensor, reason: str):
        super().__init__(fitness, reason)  # both, so that the error can be pickled
        self.fitness = fitness
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"evaluate: expected scores, found that all {len(self.fitness)} merges of a population "
            f"failed: {self.reason}"
        )


class SharedFailure(RuntimeError):
    """Work that ranks share has failed on one of them, and every rank raises this.

    All ranks go on alike, so it never counts as memory that ran out: that was the matter of one.

    :param text: the type and the message of the error there.
    """


class RankLost(RuntimeError):
    """A rank of several has died, or cannot be reached. The search cannot go on."""


class DeviceLost(RuntimeError):
    """The device of this process answers no more, so that whatever is computed on it fails.

    CUDA is like that after an error of a kernel, until the process ends.
    """


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, MemoryError) or is_out_of_memory_by_torch(error)


def is_out_of_memory_by_torch(error: Exception) -> bool:
    """Whether an error says that torch found no memory for a tensor."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, SharedFailure):
        return False
    if not isinstance(error, RuntimeError):
        return False
    return any(words in str(error) for words in OUT_OF_MEMORY)


def is_lost(device: torch.device) -> bool:
    """Whether a device that has just failed computes nothing any more. Without memory it does."""
    if device.type == "cpu":
        return False
    try:
        return float(torch.ones((), device=device)) != 1.0
    except RuntimeError as error:
        return not is_out_of_memory_by_torch(error)


def in_one_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    message = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {message}"
