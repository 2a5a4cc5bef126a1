"""Batch Bayesian optimisation by the package `botorch`, as an EvoX `Algorithm`.

M. Balandat et al., "BoTorch: A Framework for Efficient Monte-Carlo Bayesian Optimization", NeurIPS 2020, arXiv 1910.06403.
Thompson sampling over perturbations of the best point, and TuRBO's trust region: D. Eriksson et al., "Scalable Global
Optimization via Local Bayesian Optimization", NeurIPS 2019, arXiv 1910.01739. Log expected improvement: S. Ament et al.,
"Unexpected Improvements to Expected Improvement for Bayesian Optimization", NeurIPS 2023, arXiv 2310.20708.

Where we differ: TuRBO starts afresh once its region has become too small, with new points and without the old ones; here the
region becomes large again, and nothing that was paid for is forgotten.
"""

import math
import warnings

import torch
from evox.core import Algorithm, Mutable

from evox_evogm.algorithms.archive import failed_as_worst
from evox_evogm.baselines.known_points import check_box, first_population, uniform

FIRST_LENGTH, LEAST_LENGTH, LARGEST_LENGTH = 0.8, 0.5**7, 1.6  # TuRBO's, in units of the box
SUCCESSES_TO_GROW = 3  # TuRBO's


class BayesianOptimization(Algorithm):
    """A Gaussian process on all evaluations so far proposes the next batch.

    Its history grows, on the CPU in double precision: for expensive problems, not for `torch.compile`, `vmap` or
    `load_state_dict`. A failed evaluation counts as the worst that did not fail.
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
        """Set up the search and draw its first points.

        :param pop_size: P, evaluations per step.
        :param lb: an `(n,)` tensor of least coefficients.
        :param ub: an `(n,)` tensor of largest coefficients.
        :param acquisition: `thompson`: the best of `candidates` points in each of P draws from the posterior, about a second
            a step, coarse in more than a few dimensions; `turbo`: the same, with its candidates in TuRBO's trust region;
            `qlogei`: P points that maximise log expected improvement, chosen one after the other, several seconds.
        :param candidates: points that Thompson sampling chooses from, at least P.
        :param start: `known`: the points that searches share (`first_population`); `own`: scrambled Sobol points, botorch's.
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
        if start not in ("own", "known"):
            raise ValueError(f"start: expected own or known, found {start!r}")
        if not isinstance(candidates, int) or candidates < pop_size:
            raise ValueError(
                f"candidates: expected a whole number of at least pop_size = {pop_size}, found {candidates!r}"
            )
        import botorch  # noqa: F401  a missing library should be known before the first evaluation

        device = torch.get_default_device() if device is None else torch.device(device)
        self.pop_size = pop_size
        self.dim = lb.shape[0]
        self.acquisition = acquisition
        self.candidates = candidates
        self.failures_to_shrink = math.ceil(max(4, self.dim) / pop_size)  # TuRBO's

        self.lb = Mutable(lb, device=device)  # (n,)
        self.ub = Mutable(ub, device=device)  # (n,)
        first = (
            first_population(pop_size, lb, ub, device=device)
            if start == "known"
            else sobol(pop_size, lb, ub).to(device)
        )
        self.pop = Mutable(first)  # (P, n)
        self.fit = Mutable(
            torch.full((pop_size,), torch.inf, dtype=lb.dtype, device=device)
        )  # (P,)
        self.points = torch.empty(
            0, self.dim, dtype=torch.float64, device="cpu"
        )  # (H, n) in units of the box
        self.fitness = torch.empty(0, dtype=torch.float64, device="cpu")  # (H,)
        self.length, self.successes, self.failures = FIRST_LENGTH, 0, 0

    @torch.compiler.disable
    def init_step(self) -> None:
        """Evaluate the first points."""
        self._evaluate(self.pop)

    @torch.compiler.disable
    def step(self) -> None:
        """Fit the Gaussian process, and evaluate the batch that it proposes."""
        best = self._best()
        self._evaluate(self._proposals())
        self._resize_trust_region(self._best() < best - 1e-3 * abs(best))

    def _proposals(self) -> torch.Tensor:
        finite = torch.isfinite(self.fitness)
        if not finite.any():
            return uniform(self.pop_size, self.lb, self.ub)
        scores = -torch.where(finite, self.fitness, self.fitness[finite].max())[:, None]  # (H, 1)
        with torch.device("cpu"):
            model = fit_model(self.points, scores)
            if self.acquisition == "qlogei":
                proposals = expected_improvement(
                    model, float(scores.max()), self.dim, self.pop_size
                )
            else:
                best = self.points[scores.argmax()]
                region = (
                    trust_region(model, best, self.length)
                    if self.acquisition == "turbo"
                    else (0.0, 1.0)
                )
                proposals = thompson_sampling(
                    model, perturbations(best, self.candidates, *region), self.pop_size
                )
        proposals = self.lb + (self.ub - self.lb) * proposals.to(self.lb)  # (P, n)
        return proposals.clamp(self.lb, self.ub)

    def _best(self) -> float:
        return float(torch.where(torch.isfinite(self.fitness), self.fitness, torch.inf).min())

    def _resize_trust_region(self, success: bool) -> None:
        self.successes, self.failures = (
            (self.successes + 1, 0) if success else (0, self.failures + 1)
        )
        if self.successes == SUCCESSES_TO_GROW:
            self.length, self.successes = min(2 * self.length, LARGEST_LENGTH), 0
        if self.failures == self.failures_to_shrink:
            self.length, self.failures = self.length / 2, 0
        if self.length < LEAST_LENGTH:
            self.length = FIRST_LENGTH

    def _evaluate(self, pop: torch.Tensor) -> None:
        fitness = self.evaluate(pop).to(pop)  # (P,)
        self.pop, self.fit = pop, failed_as_worst(fitness)
        lb, ub = self.lb.cpu().double(), self.ub.cpu().double()
        self.points = torch.cat([self.points, (pop.cpu().double() - lb) / (ub - lb)])
        self.fitness = torch.cat([self.fitness, fitness.cpu().double()])


def sobol(count: int, lb: torch.Tensor, ub: torch.Tensor) -> torch.Tensor:
    """A `(count, n)` tensor of scrambled Sobol points between two `(n,)` tensors."""
    seed = int(torch.randint(2**31, ()))
    engine = torch.quasirandom.SobolEngine(len(lb), scramble=True, seed=seed)
    return lb + (ub - lb) * engine.draw(count, dtype=lb.dtype).to(lb.device)


def fit_model(points: torch.Tensor, scores: torch.Tensor):
    """A Gaussian process with botorch's own priors and kernel, its hyperparameters by maximum a posteriori.

    :param points: an `(H, n)` tensor in double precision, in [0, 1].
    :param scores: an `(H, 1)` tensor, maximised.
    """
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    model = SingleTaskGP(points, scores, outcome_transform=Standardize(1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def trust_region(model, best: torch.Tensor, length: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The ends (n,) of a box around the best point, longer where the score changes slowly; its volume is length^n."""
    scales = model.covar_module.lengthscale.detach()[0]  # (n,)
    half = length / 2 * scales / scales.log().mean().exp()
    return (best - half).clamp(0, 1), (best + half).clamp(0, 1)


def perturbations(
    best: torch.Tensor, count: int, least: torch.Tensor | float, largest: torch.Tensor | float
) -> torch.Tensor:
    """Scrambled Sobol points between `least` and `largest`, each in place of the best point in a random set of coordinates.

    A coordinate is perturbed with probability min(20 / n, 1), and at least one is.
    """
    n = len(best)
    spread = sobol(count, torch.zeros_like(best), torch.ones_like(best))
    draws = torch.rand(count, n)
    perturbed = (draws < min(20 / n, 1)) | (draws == draws.amin(1, keepdim=True))
    return torch.where(perturbed, least + (largest - least) * spread, best)


def thompson_sampling(model, candidates: torch.Tensor, pop_size: int) -> torch.Tensor:
    """The best candidates, a `(P, n)` tensor, in as many draws from the posterior over all of them, none twice."""
    from botorch.generation import MaxPosteriorSampling
    from gpytorch.settings import max_cholesky_size
    from linear_operator.utils.warnings import NumericalWarning

    # Over 800 points gpytorch would otherwise sample from an approximation.
    with torch.no_grad(), max_cholesky_size(len(candidates) + 1), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", NumericalWarning
        )  # of so many neighbours it always says that it added jitter
        return MaxPosteriorSampling(model, replacement=False)(candidates, num_samples=pop_size)


def expected_improvement(model, best_score: float, n: int, pop_size: int) -> torch.Tensor:
    """A `(P, n)` batch, built greedily: each point maximises the expected improvement of the batch with those before it."""
    from botorch.acquisition import qLogExpectedImprovement
    from botorch.optim import optimize_acqf
    from botorch.sampling import SobolQMCNormalSampler

    acquisition = qLogExpectedImprovement(
        model, best_score, SobolQMCNormalSampler(torch.Size([64]))
    )
    bounds = torch.tensor([[0.0] * n, [1.0] * n], dtype=torch.float64)
    # The sizes keep a batch of 20 in 10 dimensions, on 160 evaluations, to a few seconds.
    proposals, _ = optimize_acqf(
        acquisition,
        bounds,
        pop_size,
        num_restarts=2,
        raw_samples=64,
        options={"maxiter": 30},
        sequential=True,
    )
    return proposals
