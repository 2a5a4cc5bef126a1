"""A Gaussian process on many outcomes of the same points, all under one kernel: one Cholesky factor for hundreds of outputs.

Kernel: Matern 5/2 with a length scale per coordinate, whose prior grows with sqrt(n) as in C. Hvarfner et al., "Vanilla
Bayesian Optimization Performs Great in High Dimensions", ICML 2024, arXiv 2402.02229, but is far shorter; hyper-parameters by
maximum a posteriori (L-BFGS).
"""

import math
from typing import NamedTuple

import torch

FIT_ROWS = 128  # points, the first, that hyper-parameters are fitted to
NOISE_FLOOR = 1e-3  # variance, in units of an outcome's variance
LENGTH = 0.3  # times sqrt(n): the median of length scales by the prior, in half widths of the box
LENGTH_VARIANCE = 1.0  # of their logarithms
FIT_STEPS = 25  # of L-BFGS
EVIDENCE = (
    20.0  # outcomes that the evidence counts as: hundreds of similar ones would drown the priors
)


class Block(NamedTuple):
    """Outcomes that were observed at the same points: `points` (N, n), `outcomes` (N, S)."""

    points: torch.Tensor
    outcomes: torch.Tensor


class Posterior(NamedTuple):
    """Of C candidates: `means` (C, S) of the outcomes, `variance` (C, B) by block, in units of an outcome's variance, and
    `projected`, per block the candidates' covariances (N, C) with its points, whitened."""

    means: torch.Tensor
    variance: torch.Tensor
    projected: list[torch.Tensor]


def matern52(distance: torch.Tensor) -> torch.Tensor:
    """k(d), Matern's correlation of smoothness 5/2."""
    scaled = math.sqrt(5) * distance
    return (1 + scaled + scaled.square() / 3) * torch.exp(-scaled)


def matern52_slope(distance: torch.Tensor) -> torch.Tensor:
    """-k'(d) / d, which the derivatives by length scales are made of."""
    scaled = math.sqrt(5) * distance
    return (5 / 3) * (1 + scaled) * torch.exp(-scaled)


def negative_log_likelihood(
    logarithms: torch.Tensor, points: torch.Tensor, standard: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative logarithm of the probability density of outcomes, less a constant, and its gradient by hyper-parameters.

    Written out, because there is no autograd inside an operator such as `evogm::propose`: with G = (S K^-1 - A A^T) / 2, A =
    K^-1 Z, the derivative by a parameter is the sum of the elements of G times those of dK. (C. Rasmussen and C. Williams,
    "Gaussian Processes for Machine Learning", 2006, eq. 5.9, for S outputs.)

    :param logarithms: an `(n + 2,)` tensor: of the length scales, the variance, and the noise above its floor.
    :param points: an `(N, n)` tensor.
    :param standard: Z, an `(N, S)` tensor of outcomes of mean 0 and deviation 1.
    :return: a `()` tensor and an `(n + 2,)` tensor.
    """
    (rows, dim), outputs = points.shape, standard.shape[1]
    *_, variance, noise = logarithms.exp()
    scaled = points / logarithms[:dim].exp()
    distance = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
    signal = variance * matern52(distance)  # (N, N)
    factor, failed = torch.linalg.cholesky_ex(
        signal + (noise + NOISE_FLOOR) * torch.eye(rows, dtype=points.dtype)
    )
    if failed:
        return points.new_tensor(torch.inf), torch.zeros_like(logarithms)
    inverse = torch.cholesky_inverse(factor)
    solved = inverse @ standard  # (N, S)
    value = (standard * solved).sum() / 2 + outputs * factor.diagonal().log().sum()
    slope = (outputs * inverse - solved @ solved.T) / 2  # G
    weights = slope * variance * matern52_slope(distance)  # times the squared differences
    by_length = 2 * (scaled.square() * weights.sum(1, keepdim=True)).sum(0) - 2 * (
        scaled * (weights @ scaled)
    ).sum(0)
    return value, torch.cat(
        [by_length, (slope * signal).sum()[None], (noise * slope.trace())[None]]
    )


def prior_means(dim: int) -> torch.Tensor:
    """What the prior expects of the logarithms of length scales, variance, and noise above its floor, an `(n + 2,)` tensor.

    Distances grow with sqrt(n), and so do length scales. With the much longer ones that are usual in Bayesian optimisation the
    process takes the first few evaluations for noise (benchmarks/README.md).
    """
    length = math.log(LENGTH) + math.log(dim) / 2
    return torch.tensor([length] * dim + [0.0, math.log(0.01)], dtype=torch.float64)


def negative_log_posterior(
    logarithms: torch.Tensor, blocks: list[Block]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative logarithm of the posterior density of hyper-parameters, and its gradient.

    :param logarithms: an `(n + 2,)` tensor: of the length scales, the variance, and the noise above its floor.
    :param blocks: outcomes of mean 0 and deviation 1.
    :return: a `()` tensor and an `(n + 2,)` tensor.
    """
    dim = len(logarithms) - 2
    tempered = min(1.0, EVIDENCE / sum(block.outcomes.shape[1] for block in blocks))
    surprises = [negative_log_likelihood(logarithms, *block) for block in blocks]
    variances = torch.tensor([LENGTH_VARIANCE] * dim + [1.0, 4.0], dtype=logarithms.dtype)
    away = logarithms - prior_means(dim)
    value = tempered * sum(value for value, _ in surprises) + (away.square() / variances).sum() / 2
    return value, tempered * sum(gradient for _, gradient in surprises) + away / variances


class GaussianProcess:
    """S outcomes of N points under one kernel; everything in float64 on the CPU, which has to be the default device.

    Outcomes that were observed at the same points share a Cholesky factor: they are a block, and there is one, unless some
    points were given up before all their outcomes were known.

    :param points: an `(N, n)` tensor inside about [-1, 1]^n, best first: hyper-parameters are fitted to the first `FIT_ROWS`.
    :param outcomes: an `(N, S)` tensor, NaN where nothing was observed.
    """

    def __init__(self, points: torch.Tensor, outcomes: torch.Tensor):
        self.points = points
        observed = outcomes.isfinite()
        self.center = outcomes.nanmean(0).nan_to_num()  # (S,)
        away = torch.where(observed, outcomes - self.center, 0.0)
        self.scale = (
            (away.square().sum(0) / observed.sum(0).clamp_min(1)).sqrt().clamp_min(1e-6)
        )  # (S,)
        patterns, self.block_of = observed.T.unique(dim=0, return_inverse=True)  # (B, N), (S,)
        self.rows = list(patterns)
        standard = away / self.scale
        blocks = [
            Block(points[rows], standard[rows][:, self.block_of == block])
            for block, rows in enumerate(self.rows)
        ]
        first = torch.arange(len(points)) < FIT_ROWS
        fitted = [
            Block(known[first[rows]], values[first[rows]])
            for rows, (known, values) in zip(self.rows, blocks, strict=True)
        ]
        self.length_scales, self.variance, self.noise = self._fit(fitted)
        self.factors, self.coefficients = [], torch.zeros_like(standard)  # (N, S)
        for block, (rows, (known, values)) in enumerate(zip(self.rows, blocks, strict=True)):
            covariance = self.covariance(known, known)
            covariance.diagonal().add_(self.noise)
            factor = torch.linalg.cholesky(covariance)
            self.factors.append(factor)
            solved = torch.cholesky_solve(values, factor)
            self.coefficients[rows.nonzero(), (self.block_of == block).nonzero()[:, 0]] = solved

    def covariance(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Of `(A, n)` and `(B, n)` points, an `(A, B)` tensor in units of an outcome's variance."""
        return self.variance * matern52(
            torch.cdist(first / self.length_scales, second / self.length_scales)
        )

    def _fit(self, blocks: list[Block]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Length scales (n,), variance and noise that are most probable after the data.

        The best that the search has seen, not the last: where a Cholesky factor fails, a line search may end in NaN.
        """
        dim = self.points.shape[1]
        logarithms = prior_means(dim)  # where the search starts
        best, least = logarithms.clone(), torch.inf
        optimizer = torch.optim.LBFGS(
            [logarithms],
            max_iter=FIT_STEPS,
            tolerance_grad=1e-3,
            tolerance_change=1e-6,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            nonlocal best, least
            value, logarithms.grad = negative_log_posterior(logarithms, blocks)
            if value < least:
                best, least = logarithms.clone(), float(value)
            return value

        optimizer.step(closure)
        *_, variance, noise = best.exp()
        return best[:dim].exp(), variance, noise + NOISE_FLOOR

    def posterior(self, candidates: torch.Tensor) -> Posterior:
        """Of `(C, n)` candidates."""
        covariance = self.covariance(candidates, self.points)  # (C, N)
        means = self.center + self.scale * (covariance @ self.coefficients)
        projected = [
            torch.linalg.solve_triangular(factor, covariance[:, rows].T, upper=False)
            for factor, rows in zip(self.factors, self.rows, strict=True)
        ]
        explained = torch.stack([whitened.square().sum(0) for whitened in projected], 1)  # (C, B)
        return Posterior(means, (self.variance - explained).clamp_min(1e-9), projected)
