"""A Gaussian process on many outcomes of the same points, with one kernel for all outcomes.

One Cholesky factor serves thousands of outputs. The kernel is Matern 5/2 with a length scale per
coordinate. The prior of length scales grows with sqrt(n), as in C. Hvarfner et al., "Vanilla
Bayesian Optimization Performs Great in High Dimensions", ICML 2024, arXiv 2402.02229, but is far
shorter. Hyper-parameters are fitted by maximum a posteriori (L-BFGS).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import one_hot

NOISE_FLOOR = 1e-3  # variance, in units of an outcome's variance
FIT_STEPS = 25  # of L-BFGS


class Kernel(NamedTuple):
    """A stationary kernel of variance 1 over scaled distances d.

    correlation: a function of distances, k(d).
    slope: a function of distances, -k'(d) / d, of which derivatives by length scales are made.
    """

    correlation: Callable[[torch.Tensor], torch.Tensor]
    slope: Callable[[torch.Tensor], torch.Tensor]


class Prior(NamedTuple):
    """What is expected of hyper-parameters before any data.

    length_scale_median: the median of length scales, times sqrt(n), in half widths of the box.
    length_scale_log_variance: the variance of the logarithms of length scales.
    evidence: outcomes that the data count as; hundreds of similar ones would drown the prior.
    """

    length_scale_median: float = 0.3
    length_scale_log_variance: float = 1.0
    evidence: float = 20.0


PRIOR = Prior()


class Block(NamedTuple):
    """Outcomes that were observed at the same points.

    points: an `(N, n)` tensor.
    outcomes: an `(N, S)` tensor.
    """

    points: torch.Tensor
    outcomes: torch.Tensor


class Moments(NamedTuple):
    """All that the likelihood of a block depends on; a fit costs no more with more outcomes.

    points: an `(N, n)` tensor.
    products: an `(N, N)` tensor, inner products of the points' outcomes.
    outputs: how many outcomes there are, S.
    """

    points: torch.Tensor
    products: torch.Tensor
    outputs: int


class Posterior(NamedTuple):
    """What the process predicts for C candidates.

    means: a `(C, S)` tensor, of the outcomes.
    variance: a `(C, B)` tensor by block, in units of an outcome's variance.
    projected: per block an `(N, C)` tensor, covariances with the block's points, whitened.
    """

    means: torch.Tensor
    variance: torch.Tensor
    projected: list[torch.Tensor]


def matern52(distance: torch.Tensor) -> torch.Tensor:
    """Matern's correlation of smoothness 5/2."""
    scaled = math.sqrt(5) * distance
    return (1 + scaled + scaled.square() / 3) * torch.exp(-scaled)


def matern52_slope(distance: torch.Tensor) -> torch.Tensor:
    """-k'(d) / d of `matern52`."""
    scaled = math.sqrt(5) * distance
    return (5 / 3) * (1 + scaled) * torch.exp(-scaled)


def matern32(distance: torch.Tensor) -> torch.Tensor:
    """Matern's correlation of smoothness 3/2."""
    scaled = math.sqrt(3) * distance
    return (1 + scaled) * torch.exp(-scaled)


def matern32_slope(distance: torch.Tensor) -> torch.Tensor:
    """-k'(d) / d of `matern32`."""
    return 3 * torch.exp(-math.sqrt(3) * distance)


def rbf(distance: torch.Tensor) -> torch.Tensor:
    """The Gaussian correlation, which is its own slope."""
    return torch.exp(-distance.square() / 2)


MATERN52 = Kernel(matern52, matern52_slope)
MATERN32 = Kernel(matern32, matern32_slope)
RBF = Kernel(rbf, rbf)


def moments(block: Block) -> Moments:
    """What the likelihood of a block depends on, on the CPU, where hyper-parameters are fitted."""
    points, outcomes = block
    products = outcomes @ outcomes.T
    return Moments(points.cpu(), products.cpu(), outcomes.shape[1])


def negative_log_likelihood(
    log_parameters: torch.Tensor,
    points: torch.Tensor,
    products: torch.Tensor,
    outputs: int,
    kernel: Kernel = MATERN52,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log likelihood of outcomes, less a constant, and its gradient by hyper-parameters.

    Written out, because an operator such as `evogm::select_batch` has no autograd. With
    G = (S K^-1 - K^-1 Z Z^T K^-1) / 2, the derivative by a parameter is the sum of the elements of
    G times those of dK (C. Rasmussen and C. Williams, "Gaussian Processes for Machine Learning",
    2006, eq. 5.9, for S outputs). Z, the `(N, S)` outcomes of mean 0 and deviation 1, comes in by
    Z Z^T alone.

    :param log_parameters: an `(n + 2,)` tensor, logarithms of the length scales, the variance, and
        the noise above its floor.
    :param points: an `(N, n)` tensor.
    :param products: Z Z^T, an `(N, N)` tensor.
    :param outputs: S.
    :return: a `()` tensor in nats, and an `(n + 2,)` tensor.
    """
    rows, dim = points.shape
    *_, variance, noise = log_parameters.exp()
    scaled = points / log_parameters[:dim].exp()
    distance = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
    signal = variance * kernel.correlation(distance)  # (N, N)
    noisy = signal + (noise + NOISE_FLOOR) * torch.eye(rows, dtype=points.dtype)
    factor, failed = torch.linalg.cholesky_ex(noisy)
    if failed:
        return points.new_tensor(torch.inf), torch.zeros_like(log_parameters)

    inverse = torch.cholesky_inverse(factor)
    value = (inverse * products).sum() / 2 + outputs * factor.diagonal().log().sum()

    sensitivity = (outputs * inverse - inverse @ products @ inverse) / 2  # G (N, N)
    weights = sensitivity * variance * kernel.slope(distance)  # times the squared differences
    own = (scaled.square() * weights.sum(1, keepdim=True)).sum(0)
    crossed = (scaled * (weights @ scaled)).sum(0)
    by_length = 2 * own - 2 * crossed  # (n,)
    by_variance = (sensitivity * signal).sum()[None]
    by_noise = (noise * sensitivity.trace())[None]
    return value, torch.cat([by_length, by_variance, by_noise])


def prior_means(dim: int, prior: Prior = PRIOR) -> torch.Tensor:
    """The prior's means of the logarithms of hyper-parameters.

    Distances grow with sqrt(n), and so do length scales. With the much longer ones that are usual
    in Bayesian optimisation the process takes the first few evaluations for noise
    (benchmarks/results/surrogate_design.md).

    :return: an `(n + 2,)` tensor: length scales, variance, and noise above its floor.
    """
    length = math.log(prior.length_scale_median) + math.log(dim) / 2
    return torch.tensor([length] * dim + [0.0, math.log(0.01)], dtype=torch.float64)


def negative_log_posterior(
    log_parameters: torch.Tensor,
    blocks: list[Moments],
    kernel: Kernel = MATERN52,
    prior: Prior = PRIOR,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log posterior density of hyper-parameters, and its gradient.

    :param log_parameters: as of `negative_log_likelihood`.
    :param blocks: of outcomes of mean 0 and deviation 1.
    :return: a `()` tensor in nats, and an `(n + 2,)` tensor.
    """
    dim = len(log_parameters) - 2
    outputs = sum(block.outputs for block in blocks)
    tempered = min(1.0, prior.evidence / outputs)
    log_variances = [prior.length_scale_log_variance] * dim + [1.0, 4.0]
    variances = torch.tensor(log_variances, dtype=log_parameters.dtype)
    away = log_parameters - prior_means(dim, prior)

    value, gradient = log_parameters.new_zeros(()), torch.zeros_like(log_parameters)
    for block in blocks:
        block_value, block_gradient = negative_log_likelihood(log_parameters, *block, kernel)
        value = value + block_value
        gradient = gradient + block_gradient
    value = tempered * value + (away.square() / variances).sum() / 2
    return value, tempered * gradient + away / variances


class GaussianProcess:
    """S outcomes of N points under one kernel, in float64 on the default device.

    Hyper-parameters are fitted on the CPU: in many small steps, each of which waits for numbers.
    Outcomes that were observed at the same points are a block and share a Cholesky factor. There is
    one block, unless evaluations were pruned before all their outcomes were observed.
    """

    def __init__(
        self,
        points: torch.Tensor,
        outcomes: torch.Tensor,
        *,
        kernel: Kernel = MATERN52,
        prior: Prior = PRIOR,
        max_fit_points: int = 128,
    ):
        """Fit hyper-parameters and factor the covariances.

        :param points: an `(N, n)` tensor inside about [-1, 1]^n, best first.
        :param outcomes: an `(N, S)` tensor, NaN where nothing was observed.
        :param max_fit_points: hyper-parameters are fitted to so many points, the first.
        """
        self.points, self.kernel, self.prior = points, kernel, prior
        observed = outcomes.isfinite()
        self.center = outcomes.nanmean(0).nan_to_num()  # (S,)
        away = torch.where(observed, outcomes - self.center, 0.0)
        mean_square = away.square().sum(0) / observed.sum(0).clamp_min(1)
        self.scale = mean_square.sqrt().clamp_min(1e-6)  # (S,)
        patterns, self.block_of = observed.T.unique(dim=0, return_inverse=True)  # (B, N), (S,)
        self.rows = list(patterns)
        self.complete = patterns.all(1).tolist()  # whether a block has all points
        self.membership = one_hot(self.block_of, len(patterns)).T.to(points)  # (B, S) of 0 and 1

        standard = away / self.scale
        fit_rows = torch.arange(len(points)) < max_fit_points
        blocks, fitted = [], []
        for block, rows in enumerate(self.rows):
            values = standard[rows][:, self.block_of == block]
            blocks.append(Block(points[rows], values))
            first = fit_rows[rows]
            fitted.append(moments(Block(points[rows][first], values[first])))
        with torch.device("cpu"):
            fit = self._fit(fitted)
        self.length_scales, self.variance, self.noise = [one.to(points) for one in fit]
        self._factor(blocks, torch.zeros_like(standard))

    def _factor(self, blocks: list[Block], coefficients: torch.Tensor) -> None:
        """Compute the Cholesky factor of every block, and from these K^-1 Z in units of outcomes.

        :param blocks: as many as `rows`, of outcomes of mean 0 and deviation 1.
        :param coefficients: an `(N, S)` tensor of zeros, overwritten where outcomes were observed.
        """
        self.factors = []
        for block, rows in enumerate(self.rows):
            points, outcomes = blocks[block]
            covariance = self.covariance(points, points)
            covariance.diagonal().add_(self.noise)
            factor = torch.linalg.cholesky(covariance)
            self.factors.append(factor)
            columns = (self.block_of == block).nonzero()[:, 0]
            coefficients[rows.nonzero(), columns] = torch.cholesky_solve(outcomes, factor)
        self.coefficients = coefficients * self.scale

    def covariance(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Of `(A, n)` and `(B, n)` points, an `(A, B)` tensor in units of an outcome's variance."""
        distance = torch.cdist(first / self.length_scales, second / self.length_scales)
        return self.variance * self.kernel.correlation(distance)

    def _fit(self, blocks: list[Moments]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The most probable length scales (n,), variance and noise; the noise with its floor.

        The best that the line searches have seen, not the last: where a Cholesky factor fails, a
        line search may end in NaN.
        """
        dim = self.points.shape[1]
        log_parameters = prior_means(dim, self.prior)
        best, least = log_parameters.clone(), torch.inf
        optimizer = torch.optim.LBFGS(
            [log_parameters],
            max_iter=FIT_STEPS,
            tolerance_grad=1e-3,
            tolerance_change=1e-6,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            nonlocal best, least
            value, log_parameters.grad = negative_log_posterior(
                log_parameters, blocks, self.kernel, self.prior
            )
            if value < least:
                best, least = log_parameters.clone(), float(value)
            return value

        optimizer.step(closure)
        *_, variance, noise = best.exp()
        return best[:dim].exp(), variance, noise + NOISE_FLOOR

    def posterior(self, candidates: torch.Tensor) -> Posterior:
        """What the process predicts for candidates.

        :param candidates: a `(C, n)` tensor.
        """
        covariance = self.covariance(candidates, self.points)  # (C, N)
        means = torch.addmm(self.center, covariance, self.coefficients)
        projected, explained = [], []
        for factor, rows, complete in zip(self.factors, self.rows, self.complete, strict=True):
            known = covariance if complete else covariance[:, rows]
            whitened = torch.linalg.solve_triangular(factor, known.T, upper=False)
            projected.append(whitened)
            explained.append(whitened.square().sum(0))
        variance = (self.variance - torch.stack(explained, 1)).clamp_min(1e-9)  # (C, B)
        return Posterior(means, variance, projected)
