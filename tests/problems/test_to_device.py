"""Copies to a device that the host does not wait for."""

import torch

from evox_evogm.problems.to_device import to_device


class Pretended(torch.Tensor):
    """Notes how it is copied."""

    def pin_memory(self):
        self.pinned = True
        return self

    def to(self, device, *, non_blocking=False):
        return device, getattr(self, "pinned", False), non_blocking


def test_only_a_copy_to_cuda_goes_by_pinned_memory():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert to_device(torch.arange(3).as_subclass(Pretended), cuda) == (cuda, True, True)
    assert to_device(torch.arange(3).as_subclass(Pretended), cpu) == (cpu, False, False)
    values = torch.arange(3)
    assert to_device(values, cpu) is values and torch.equal(to_device(values, None), values)
