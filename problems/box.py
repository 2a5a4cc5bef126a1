"""The box in which merges are searched, and the merge in its middle."""

import torch


def start_of(n: int, *, regressed: bool, kept: int = 0) -> torch.Tensor:
    """The merge where searches begin: the RegMean merge, or the average of experts as they are.

    :param n: experts.
    :param regressed: whether there are experts of RegMean. Their sum is the RegMean merge.
    :param kept: how many experts, the first ones, are as they are beside those of RegMean. They
        are no part of the RegMean merge.
    :return: an `(n,)` tensor of effective coefficients.
    """
    start = torch.full((n,), 1.0 if regressed else 1 / n, dtype=torch.float32)
    start[:kept] = 0
    return start


def box_of(n: int, *, regressed: bool, kept: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The box in which merges of n experts are searched, 2 wide in each direction.

    It lies so that the average of the axes through its middle, where searches begin, is `start_of`.

    :param regressed: whether there are experts of RegMean.
    :param kept: how many experts, the first ones, are as they are beside those of RegMean.
    :return: `lb` and `ub`, two `(n,)` tensors: -1 and 1, or for experts of RegMean -1/n and
        2 - 1/n, and for those beside them -1 - 1/n and 1 - 1/n.
    """
    center = torch.full((n,), 1 - 1 / n if regressed else 0.0, dtype=torch.float32)
    center[:kept] = -1 / n
    return center - 1, center + 1
