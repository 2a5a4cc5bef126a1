"""Copies to a device that the host does not wait for."""

import torch


def to_device(values: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    """A small tensor of the host on a device. The host goes on while a GPU still computes.

    A plain copy to a GPU waits until all that it was asked before is done.
    """
    if device is None or device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
