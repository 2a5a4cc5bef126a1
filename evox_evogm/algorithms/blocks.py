"""Blocks of coordinates, such as the coefficients of one expert in all groups of modules."""

import torch

from evox_evogm.algorithms.checks import check_whole_numbers


def check_blocks(blocks: int | None, dim: int) -> int:
    """The number of blocks of equal length that `dim` coordinates form; `dim` by default.

    :raises ValueError: if it does not divide `dim`.
    """
    if blocks is None:
        return dim
    check_whole_numbers(1, blocks=blocks)
    if dim % blocks:
        raise ValueError(f"blocks: expected a divisor of {dim} coordinates, found {blocks}")
    return blocks


def count_coarse_points(blocks: int, dim: int, per_block: int) -> int:
    """How many of the first points have one value a block; 0 if a block is a coordinate.

    :param per_block: so many times as there are blocks.
    """
    return 0 if blocks == dim else per_block * blocks


def are_coarse(points: torch.Tensor, blocks: int) -> bool:
    """Whether all coordinates of a block are equal in each of `(M, n)` points, with blocks < n."""
    values = points.unflatten(1, (blocks, -1))  # (M, blocks, n / blocks)
    return values.shape[2] > 1 and bool((values == values[..., :1]).all())


def first_of_blocks(points: torch.Tensor, blocks: int) -> torch.Tensor:
    """The first coordinate of every block of `(M, n)` points, an `(M, blocks)` tensor."""
    return points.unflatten(1, (blocks, -1))[..., 0]


def spread_blocks(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Points `(M, dim)` in which all coordinates of a block have its value of `(M, blocks)`."""
    return values.repeat_interleave(dim // values.shape[1], 1)


def block_bounds(bounds: torch.Tensor, blocks: int) -> torch.Tensor:
    """Bounds `(2, blocks)` inside which a block may move as a whole, of bounds `(2, n)`."""
    lower, upper = bounds.unflatten(1, (blocks, -1))
    return torch.stack([lower.amax(1), upper.amin(1)])
