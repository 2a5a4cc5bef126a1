"""The ranks of `torch.distributed`: rank 0 uses the files, the others receive what it has read."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

Found = TypeVar("Found")


def is_rank_0() -> bool:
    """Whether this process is the first of its group, or has no group."""
    return not _in_group() or dist.get_rank() == 0


def read_on_rank_0(read: Callable[[], Found]) -> Found:
    """Call a function on rank 0.

    :param read: the function; its result must be picklable if there are several ranks.
    :return: the result, on every rank.
    """
    found = [read() if is_rank_0() else None]
    if _in_group() and dist.get_world_size() > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]  # None is only a place for the result of rank 0


def _in_group() -> bool:
    """Whether `torch.distributed` has been started."""
    return dist.is_available() and dist.is_initialized()
