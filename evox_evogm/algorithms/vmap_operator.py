"""What `vmap` adds to the tensors of an operator: further dimensions before its own."""

from collections.abc import Sequence

import torch


def flatten_lead(
    tensors: Sequence[torch.Tensor], own_dims: Sequence[int]
) -> tuple[torch.Size, list[torch.Tensor]]:
    """Bring tensors to one set of leading dimensions, and these to one dimension.

    :param own_dims: how many dimensions each tensor has without the leading ones.
    :return: the leading dimensions, and the tensors of K = their product runs.
    """
    pairs = list(zip(tensors, own_dims, strict=True))
    lead = torch.broadcast_shapes(*(tensor.shape[: tensor.ndim - own] for tensor, own in pairs))
    runs = lead.numel()
    own_shapes = [tensor.shape[tensor.ndim - own :] for tensor, own in pairs]
    return lead, [
        t.expand(*lead, *shape).reshape(runs, *shape)
        for t, shape in zip(tensors, own_shapes, strict=True)
    ]
