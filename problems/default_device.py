"""Where tensors go that name no device."""

from contextlib import AbstractContextManager, nullcontext

import torch


def on_cpu_by_default() -> AbstractContextManager:
    """Inside the block tensors go to the CPU unless a device is named, whatever the default is."""
    if torch.get_default_device().type == "cpu":
        return nullcontext()
    return torch.device("cpu")
