"""Batch Bayesian optimisation by the package `botorch`, as an EvoX `Algorithm`.

- Library: M. Balandat et al., "BoTorch: A Framework for Efficient Monte-Carlo Bayesian
  Optimization", NeurIPS 2020, arXiv 1910.06403.
- Thompson sampling over perturbations of the best point, and the trust region (TuRBO): D. Eriksson
  et al., "Scalable Global Optimization via Local Bayesian Optimization", NeurIPS 2019, arXiv
  1910.01739.
- Log expected improvement: S. Ament et al., "Unexpected Improvements to Expected Improvement for
  Bayesian Optimization", NeurIPS 2023, arXiv 2310.20708.

Where we differ: TuRBO starts afresh once its region has become too small, with new points and
without the old ones. Here the region becomes large again, and all evaluations are kept.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from evox.core import Algorithm, Mutable

from evox_evogm.algorithms.archive import failed_as_worst
from evox_evogm.algorithms.checks import check_box
from evox_evogm.baselines.known_points import check_start, initial_population, uniform

# TuRBO's constants; lengths are in units of the box.
FIRST_LENGTH = 0.8
LEAST_LENGTH = 0.5**7
LARGEST_LENGTH = 1.6
SUCCESSES_TO_GROW = 3
# An improvement of the best fitness by less than this part of it is no success.
LEAST_IMPROVEMENT = 1e-3


class BayesianOptimization(Algorithm):
    """A Gaussian process on all evaluations so far proposes the next batch.

    Its history grows, on the CPU in double precision: for expensive problems, not for
    `torch.compile`, `vmap` or `load_state_dict`. A failed evaluation counts as the worst one that
    did not fail.
    """

    def __init__(
        self,
        pop_size: int,
        lb: torch.Tensor,
        ub: torch.Tensor,
        *,
        acquisition: str = "thompson",
        candidates: int = 2000,
        start: str = "known",
        device: torch.device | None = None,
    ):
        """Set up the search and draw its initial population.

        The acquisitions are

        - `thompson`: the best of `candidates` points in each of P draws from the posterior. About a
          second a step, coarse in more than a few dimensions.
        - `turbo`: the same, with its candidates in TuRBO's trust region.
        - `qlogei`: P points that maximise log expected improvement, chosen one after the other.
          Several seconds a step.

        :param pop_size: P, evaluations per step.
        :param lb: an `(n,)` tensor of least coefficients.
        :param ub: an `(n,)` tensor of largest coefficients.
        :param acquisition: `thompson`, `turbo` or `qlogei`.
        :param candidates: points that Thompson sampling chooses from, at least P.
        :param start: `known`: the points of `initial_population`. `own`: scrambled Sobol points, as
            in botorch.
        :param device: where candidates are evaluated. Defaults to torch's default device.
        :raises ValueError: if a setting is out of range.
        :raises ModuleNotFoundError: without the package `botorch`.
        """
        super().__init__()
        check_box(pop_size, lb, ub)
        if acquisition not in ("thompson", "turbo", "qlogei"):
            raise ValueError(
                f"acquisition: expected thompson, turbo or qlogei, found {acquisition!r}"
            )
        check_start(start)
        if not isinstance(candidates, int) or candidates < pop_size:
            raise ValueError(
                f"candidates: expected a whole number of at least pop_size = {pop_size}, "
                f"found {candidates!r}"
            )
        import botorch  # noqa: F401  a missing library should be known before the first evaluation

        device = torch.get_default_device() if device is None else torch.device(device)

        self.pop_size = pop_size
        self.dim = lb.shape[0]
        self.acquisition = acquisition
        self.candidates = candidates

        if start == "known":
            pop = initial_population(pop_size, lb, ub, device=device)
        else:
            pop = sobol(pop_size, lb, ub).to(device)
        unevaluated = torch.full((pop_size,), torch.inf, dtype=lb.dtype, device=device)
        self.lb = Mutable(lb, device=device)  # (n,)
        self.ub = Mutable(ub, device=device)  # (n,)
        self.pop = Mutable(pop)  # (P, n)
        self.fit = Mutable(unevaluated)  # (P,)

        # These grow, and so they are no part of EvoX's state.
        # (H, n) in [0, 1], and (H,)
        self.points = torch.empty(0, self.dim, dtype=torch.float64, device="cpu")
        self.fitness = torch.empty(0, dtype=torch.float64, device="cpu")
        failures_to_shrink = math.ceil(max(4, self.dim) / pop_size)  # TuRBO's
        self.region = TrustRegion(failures_to_shrink)

    @torch.compiler.disable
    def init_step(self) -> None:
        """Evaluate the initial population."""
        self._evaluate(self.pop)

    @torch.compiler.disable
    def step(self) -> None:
        """Fit the Gaussian process, and evaluate the batch that it proposes."""
        before = self._best_fitness()
        self._evaluate(self._propose_batch())
        improved = self._best_fitness() < before - LEAST_IMPROVEMENT * abs(before)
        self.region = self.region.after(improved)

    def _propose_batch(self) -> torch.Tensor:
        """The next (P, n) points, uniform ones while every evaluation has failed."""
        finite = torch.isfinite(self.fitness)
        if not finite.any():
            return uniform(self.pop_size, self.lb, self.ub)
        worst = self.fitness[finite].max()
        scores = -torch.where(finite, self.fitness, worst)[:, None]  # (H, 1)
        # The history is on the CPU in float64, whatever torch's defaults are.
        with torch.device("cpu"), _float32_by_default():
            batch = self._optimize_acquisition(scores)  # (P, n) in [0, 1]
        batch = self.lb + (self.ub - self.lb) * batch.to(self.lb)
        return batch.clamp(self.lb, self.ub)

    def _optimize_acquisition(self, scores: torch.Tensor) -> torch.Tensor:
        """The next points, a (P, n) tensor in [0, 1], by (H, 1) scores, maximised."""
        model = fit_model(self.points, scores)
        if self.acquisition == "qlogei":
            return expected_improvement(model, float(scores.max()), self.dim, self.pop_size)
        best = self.points[scores.argmax()]  # (n,)
        if self.acquisition == "turbo":
            lower, upper = trust_region_bounds(model, best, self.region.length)
            candidates = perturbations(best, self.candidates, lower, upper)
        else:
            candidates = perturbations(best, self.candidates, 0.0, 1.0)
        return thompson_sampling(model, candidates, self.pop_size)

    def _best_fitness(self) -> float:
        """The best so far, inf while every evaluation has failed."""
        succeeded = torch.isfinite(self.fitness)
        return float(torch.where(succeeded, self.fitness, torch.inf).min())

    def _evaluate(self, pop: torch.Tensor) -> None:
        fitness = self.evaluate(pop).to(pop)  # (P,)
        self.pop = pop
        self.fit = failed_as_worst(fitness)
        lb = self.lb.cpu().double()
        ub = self.ub.cpu().double()
        points = (pop.cpu().double() - lb) / (ub - lb)
        self.points = torch.cat([self.points, points])
        self.fitness = torch.cat([self.fitness, fitness.cpu().double()])


@dataclass(frozen=True)
class TrustRegion:
    """The size of TuRBO's trust region: it grows with successes and shrinks with failures.

    :param failures_to_shrink: failures in a row after which the length is halved.
    :param length: the side of the region, in units of the box.
    :param successes: successes in a row since the length last changed.
    :param failures: failures in a row since the length last changed.
    """

    failures_to_shrink: int
    length: float = FIRST_LENGTH
    successes: int = 0
    failures: int = 0

    def after(self, success: bool) -> "TrustRegion":
        """The region after a further success or failure."""
        length = self.length
        successes = self.successes + 1 if success else 0
        failures = 0 if success else self.failures + 1
        if successes == SUCCESSES_TO_GROW:
            length = min(2 * length, LARGEST_LENGTH)
            successes = 0
        if failures == self.failures_to_shrink:
            length = length / 2
            failures = 0
        if length < LEAST_LENGTH:
            length = FIRST_LENGTH
        return TrustRegion(self.failures_to_shrink, length, successes, failures)


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Inside the block botorch makes its constants in float32, and rounds none to less."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)


def sobol(count: int, lb: torch.Tensor, ub: torch.Tensor) -> torch.Tensor:
    """A `(count, n)` tensor of scrambled Sobol points between two `(n,)` tensors."""
    seed = int(torch.randint(2**31, ()))
    engine = torch.quasirandom.SobolEngine(len(lb), scramble=True, seed=seed)
    return lb + (ub - lb) * engine.draw(count, dtype=lb.dtype).to(lb.device)


def fit_model(points: torch.Tensor, scores: torch.Tensor):
    """A Gaussian process with botorch's own priors and kernel, fitted by maximum a posteriori.

    :param points: an `(H, n)` tensor in double precision, in [0, 1].
    :param scores: an `(H, 1)` tensor, maximised.
    :return: botorch's `SingleTaskGP`.
    """
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    model = SingleTaskGP(points, scores, outcome_transform=Standardize(1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def trust_region_bounds(
    model, best: torch.Tensor, length: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A box around the best point, within [0, 1]^n.

    It is longer where the score changes slowly. Before it is cut off its volume is length^n.

    :param model: of `fit_model`.
    :param best: an `(n,)` tensor.
    :param length: of the region, in units of [0, 1].
    :return: the lower and the upper bounds, two `(n,)` tensors.
    """
    scales = model.covar_module.lengthscale.detach()[0]  # (n,)
    half = length / 2 * scales / scales.log().mean().exp()
    return (best - half).clamp(0, 1), (best + half).clamp(0, 1)


def perturbations(
    best: torch.Tensor, count: int, lower: torch.Tensor | float, upper: torch.Tensor | float
) -> torch.Tensor:
    """The best point with scrambled Sobol numbers in a random set of coordinates.

    A coordinate is perturbed with probability min(20 / n, 1), and at least one is.

    :param best: an `(n,)` tensor.
    :param lower: bounds of the Sobol numbers, an `(n,)` tensor or one for all coordinates.
    :param upper: likewise.
    :param count: how many points.
    :return: a `(count, n)` tensor.
    """
    n = len(best)
    unit = sobol(count, torch.zeros_like(best), torch.ones_like(best))  # (count, n)
    draws = torch.rand(count, n, dtype=torch.float32)
    perturbed = (draws < min(20 / n, 1)) | (draws == draws.amin(1, keepdim=True))
    return torch.where(perturbed, lower + (upper - lower) * unit, best)


def thompson_sampling(model, candidates: torch.Tensor, pop_size: int) -> torch.Tensor:
    """The best candidate in each of P draws from the posterior over all of them, none twice.

    :param model: of `fit_model`.
    :param candidates: a `(C, n)` tensor in [0, 1], C at least P.
    :param pop_size: P.
    :return: a `(P, n)` tensor.
    """
    from botorch.generation import MaxPosteriorSampling
    from gpytorch.settings import max_cholesky_size
    from linear_operator.utils.warnings import NumericalWarning

    sampling = MaxPosteriorSampling(model, replacement=False)
    # Over 800 points gpytorch would otherwise sample from an approximation.
    with torch.no_grad(), max_cholesky_size(len(candidates) + 1), warnings.catch_warnings():
        # With so many neighbours it adds jitter, and says so, every time.
        warnings.simplefilter("ignore", NumericalWarning)
        return sampling(candidates, num_samples=pop_size)


def expected_improvement(model, best_score: float, n: int, pop_size: int) -> torch.Tensor:
    """A batch whose points are chosen one after the other.

    Each maximises the log expected improvement of the batch with the points before it.

    :param model: of `fit_model`.
    :param best_score: of all evaluations.
    :param n: coordinates of a point.
    :param pop_size: P.
    :return: a `(P, n)` tensor in [0, 1].
    """
    from botorch.acquisition import qLogExpectedImprovement
    from botorch.optim import optimize_acqf
    from botorch.sampling import SobolQMCNormalSampler

    sampler = SobolQMCNormalSampler(torch.Size([64]))
    acquisition = qLogExpectedImprovement(model, best_score, sampler)
    bounds = torch.tensor([[0.0] * n, [1.0] * n], dtype=torch.float64)
    # The sizes keep a batch of 20 in 10 dimensions, on 160 evaluations, to a few seconds.
    batch, _ = optimize_acqf(
        acquisition,
        bounds,
        pop_size,
        num_restarts=2,
        raw_samples=64,
        options={"maxiter": 30},
        sequential=True,
    )
    return batch
