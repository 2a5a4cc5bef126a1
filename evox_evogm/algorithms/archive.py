"""The history of one round: a fixed number of rows, sorted by fitness with the best first.

Pure functions of tensors. Rows that hold nothing yet have fitness +inf and stand last. Because the
archive is sorted, winners are its first rows, losers the rest, the population its first P rows, and
the experts of the next round its first n rows.
"""

from typing import NamedTuple

import torch


class Archive(NamedTuple):
    """Evaluated points.

    points: a `(C, n)` tensor over the axes of the round.
    fitness: a `(C,)` tensor, minimised.
    count: a `()` tensor, rows in use.
    """

    points: torch.Tensor
    fitness: torch.Tensor
    count: torch.Tensor  # type: ignore[assignment]  # tuples have a method of this name


def empty(capacity: int, dim: int, dtype: torch.dtype, device: torch.device) -> Archive:
    """An archive of unused rows.

    :param capacity: C, how many.
    :param dim: n, coordinates of a point.
    """
    return Archive(
        torch.zeros(capacity, dim, dtype=dtype, device=device),
        torch.full((capacity,), torch.inf, dtype=dtype, device=device),
        torch.zeros((), dtype=torch.int64, device=device),
    )


def failed_as_worst(fitness: torch.Tensor) -> torch.Tensor:
    """NaN and infinite fitness as the largest finite number of its type.

    It is worse than any score and better than an unused row.

    :param fitness: a tensor of any shape, minimised.
    """
    return torch.where(torch.isfinite(fitness), fitness, torch.finfo(fitness.dtype).max)


def append(archive: Archive, points: torch.Tensor, fitness: torch.Tensor) -> Archive:
    """Add evaluated rows; a full archive drops its worst. Of equals, the older comes first.

    :param points: a `(P, n)` tensor.
    :param fitness: a `(P,)` tensor, minimised.
    :return: the new archive, of the same capacity.
    """
    capacity, new_rows = archive.fitness.shape[0], fitness.shape[0]
    fitness = torch.cat([archive.fitness, failed_as_worst(fitness)])  # (C + P,)
    best = torch.argsort(fitness, stable=True)[:capacity]  # (C,)
    points = torch.cat([archive.points, points])[best]
    return Archive(points, fitness[best], (archive.count + new_rows).clamp(max=capacity))


def start_next_round(archive: Archive, dim: int) -> Archive:
    """The archive of the next round, whose axes are the best n points of this one.

    Over these axes the n points are the one-hots. They keep the fitness that they have.

    :param archive: of at least n rows.
    :param dim: n.
    :return: an archive of the same capacity with at most n rows in use.
    """
    capacity = len(archive.points)
    dtype, device = archive.points.dtype, archive.points.device
    one_hots = torch.eye(dim, dtype=dtype, device=device)
    unused = empty(capacity, dim, dtype, device)
    points = torch.cat([one_hots, unused.points[dim:]])
    fitness = torch.cat([archive.fitness[:dim], unused.fitness[dim:]])
    return Archive(points, fitness, archive.count.clamp(max=dim))


def winner_count(count: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """How many rows are winners: max(1, floor(ratio H)) of H rows.

    :param count: H, a tensor of whole numbers.
    :param ratio: the share of winners, a tensor whose shape broadcasts with that of `count`.
    :return: int64 of the common shape.
    """
    # In float32 a product that should be whole may fall just below it.
    return torch.floor(ratio * count + 1e-4).long().clamp(min=1)


def draw_losers(draws: torch.Tensor, winners: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Row numbers of losers, independent and uniform over the rows after the winners.

    :param draws: numbers in [0, 1).
    :param winners: how many rows are winners, the first ones; broadcasts with `draws`.
    :param count: how many rows are in use; broadcasts with `draws`.
    :return: int64 of the shape of `draws`; where every row is a winner, the last row.
    """
    rows = winners + (draws * (count - winners)).long()
    return torch.minimum(rows, count - 1)
