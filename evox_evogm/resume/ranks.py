"""The ranks of `torch.distributed`: rank 0 uses the files, the others receive what it has read."""

from collections.abc import Callable
from functools import cache
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
    :raises Exception: on every rank, what the function has raised.
    """
    if not _in_group() or dist.get_world_size() == 1:
        return read()
    sent: list = [None, None]  # the result and the error
    if is_rank_0():
        try:
            sent[0] = read()
        except Exception as error:  # the others would wait for it
            sent[1] = error
    dist.broadcast_object_list(sent, src=0, group=_gloo_group(dist.group.WORLD))
    found, failure = sent
    if failure is not None:
        raise failure
    return found


@cache
def _gloo_group(world: "dist.ProcessGroup") -> "dist.ProcessGroup":
    """A group of all ranks whose objects travel by the CPU.

    By NCCL alone they would travel by the current device, which may be the same for all ranks.

    :param world: the group of all ranks.
    """
    if "gloo" in dist.get_backend_config(world):
        return world
    return dist.new_group(backend="gloo")


def _in_group() -> bool:
    """Whether `torch.distributed` has been started."""
    return dist.is_available() and dist.is_initialized()
