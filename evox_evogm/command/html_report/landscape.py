"""What the evaluations of a run say about the merges between them: an interpolation, and a slice.

A Gaussian process over all n g coefficients, with a Matern 5/2 kernel of one length scale, fits the
observed scores. Length scale and noise are those of a grid with the largest likelihood.
"""

import math
from typing import NamedTuple

import torch

from evox_evogm.algorithms.gaussian_process import matern52

LEAST_POINTS = 6  # fewer say nothing of a landscape
MOST_POINTS = 500  # of a fit: the best ones, and evenly chosen others
LENGTH_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # in median distances between points
NOISES = (1e-3, 1e-2, 0.1, 0.5, 1.0)  # variances, of scores of variance 1
GOOD = 1 / 3  # the share of the evaluations that count as good


class Interpolation(NamedTuple):
    """A Gaussian process, fitted to the scores of N merges."""

    points: torch.Tensor
    """`(N, d)`, different ones."""
    scores: torch.Tensor
    """`(N,)` observed."""
    held_out: torch.Tensor
    """`(N,)` what is predicted for each from all others."""
    length_scale: float
    factor: torch.Tensor
    """`(N, N)`, the Cholesky factor of the covariance."""
    weights: torch.Tensor
    """`(N,)`, the inverse covariance times the standardised scores."""
    mean: float
    std: float

    def predict(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is expected of other merges.

        :param points: `(C, d)`.
        :return: two `(C,)` tensors: scores, and how unsure they are: the standard deviation as a
            share of that far from all evaluations, 0 to 1.
        """
        covariance = matern52(torch.cdist(points, self.points) / self.length_scale)  # (C, N)
        scores = covariance @ self.weights * self.std + self.mean
        known = torch.linalg.solve_triangular(self.factor, covariance.T, upper=False)
        variance = (1 - known.square().sum(0)).clamp(0, 1)
        return scores, variance.sqrt()

    @property
    def explained(self) -> float:
        """The share of the variance of the scores that held-out predictions explain."""
        left = (self.scores - self.held_out).square().mean()
        return float(1 - left / self.scores.var(unbiased=False))


def interpolate(points: torch.Tensor, scores: torch.Tensor) -> Interpolation | None:
    """Fit the scores of merges.

    :param points: `(N, d)` coefficients.
    :param scores: `(N,)`; NaN where a merge has none.
    :return: None where there are too few different merges, or all have one score.
    """
    points, scores = different(points, scores)
    if len(points) < LEAST_POINTS or float(scores.std()) < 1e-9:
        return None
    if len(points) > MOST_POINTS:
        order = scores.argsort(descending=True)
        half = MOST_POINTS // 2
        rest = order[half:]
        places = torch.linspace(0, len(rest) - 1, half).round().long()
        chosen = torch.cat([order[:half], rest[places]])
        points, scores = points[chosen], scores[chosen]
    mean, std = float(scores.mean()), float(scores.std())
    outcomes = (scores - mean) / std
    distances = torch.cdist(points, points)
    typical = float(distances[distances > 0].median())
    best, found = -math.inf, None
    for scale in LENGTH_SCALES:
        correlation = matern52(distances / (scale * typical))
        for noise in NOISES:
            covariance = correlation + noise * torch.eye(len(points), dtype=points.dtype)
            factor = torch.linalg.cholesky(covariance)
            weights = torch.cholesky_solve(outcomes[:, None], factor)[:, 0]
            log_determinant = 2 * factor.diagonal().log().sum()
            evidence = -0.5 * float(outcomes @ weights + log_determinant)
            if evidence > best:
                best, found = evidence, (scale * typical, factor, weights)
    assert found is not None
    length_scale, factor, weights = found
    inverse = torch.cholesky_inverse(factor)
    held_out = (outcomes - weights / inverse.diagonal()) * std + mean
    return Interpolation(points, scores, held_out, length_scale, factor, weights, mean, std)


def different(points: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The merges that have a score, each once."""
    rows: dict[tuple[float, ...], int] = {}
    for row, point in enumerate(points.tolist()):
        if math.isfinite(float(scores[row])):
            rows.setdefault(tuple(point), row)
    kept = list(rows.values())
    return points[kept], scores[kept]


class Slice(NamedTuple):
    """A plane, or with one coefficient a line, through a merge."""

    center: torch.Tensor
    """`(d,)`, the merge; with one or two coefficients 0, so that places are coefficients."""
    axes: torch.Tensor
    """`(2, d)` or `(1, d)` directions of length 1."""
    share: float
    """How much of the good merges' variation lies in it, 0 to 1."""

    def place(self, points: torch.Tensor) -> torch.Tensor:
        """`(C, d)` coefficients as `(C, 2)` or `(C, 1)` places, the nearest in the slice."""
        return (points - self.center) @ self.axes.T

    def distance(self, points: torch.Tensor) -> torch.Tensor:
        """`(C,)` distances of coefficients from the slice."""
        inside = self.place(points) @ self.axes + self.center
        return (points - inside).norm(dim=1)

    def point(self, places: torch.Tensor) -> torch.Tensor:
        """`(C, d)` coefficients at places in the slice."""
        return places @ self.axes + self.center


def slice_through(points: torch.Tensor, scores: torch.Tensor, merge: torch.Tensor) -> Slice | None:
    """The slice through the merge in which the good merges differ most from it.

    :param points: `(N, d)` evaluated coefficients, different ones.
    :param scores: `(N,)` of each.
    :param merge: `(d,)`, the best merge.
    :return: None where the good merges lie on one line.
    """
    dimension = points.shape[1]
    if dimension <= 2:  # the coefficients themselves
        return Slice(torch.zeros_like(merge), torch.eye(dimension, dtype=points.dtype), 1.0)
    count = max(LEAST_POINTS // 2, round(GOOD * len(points)))
    good = points[scores.argsort(descending=True)[:count]] - merge
    _, sizes, directions = torch.linalg.svd(good, full_matrices=False)
    if len(sizes) < 2 or sizes[1] <= 1e-9 * max(1.0, float(sizes[0])):
        return None
    axes = directions[:2]
    # Each direction points to where its largest entry grows, whatever sign the library gave it.
    largest = axes.abs().argmax(1)
    axes = axes * axes[[0, 1], largest].sign()[:, None]
    share = float(sizes[:2].square().sum() / sizes.square().sum())
    return Slice(merge, axes, share)
