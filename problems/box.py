"""The box in which merges are searched."""

import torch


def box_of(n: int, *, regressed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The box in which merges of n experts are searched.

    :param regressed: whether the experts are those of RegMean. The box is then moved so that the
        average of the axes, where searches begin, is the RegMean merge.
    :return: `lb` and `ub`, two `(n,)` tensors: -1 and 1, or for regressed experts -1/n and 2 - 1/n.
    """
    middle = 0.0
    if regressed:
        middle = 1 - 1 / n
    center = torch.full((n,), middle, dtype=torch.float32)
    return center - 1, center + 1
