"""Clocks of what a device computes, which it does on its own time."""

import time
from collections.abc import Callable

import torch

Clock = Callable[[], float]


def clock_of(device: torch.device) -> Clock:
    """A clock that waits until a device has done its work.

    On one thread of a CPU it is the time of this process, which other programs do not lengthen.
    """
    if device.type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def seconds() -> float:
        synchronize(device)
        return time.perf_counter()

    return seconds


def synchronize(device: torch.device) -> None:
    """Wait until a device has done its work. It need not be the current one of its kind."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
