"""Whole models that differ from others at random."""

import torch


@torch.no_grad()
def changed(model, seed, *, std=0.05, only=""):
    """The model with random changes of its weights, in those whose names hold `only`."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if only in name:
            parameter.add_((std * torch.randn(parameter.shape)).to(parameter.dtype))
    return model
