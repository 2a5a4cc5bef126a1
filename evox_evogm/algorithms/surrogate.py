"""The surrogate: what fitness to expect of a point, from a Gaussian process on its outcomes.

A fitness is often a weighted sum of many outcomes that are known one by one. Accuracy, for example,
is the mean over examples of "the margin of the right answer is above 0". Margins change smoothly
where the fitness has steps, and one evaluation yields hundreds of them. So the process models every
outcome, all with one kernel, and the predicted fitness follows:

    sum_s w_s P(outcome_s > 0)  for outcomes that count by their sign,
    sum_s w_s E[outcome_s]      for the others.

A fitness without outcomes is one outcome of weight 1 that counts as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from evox_evogm.algorithms.gaussian_process import (
    MATERN52,
    PRIOR,
    GaussianProcess,
    Kernel,
    Posterior,
    Prior,
)

# Predictions are made in chunks: a chunk's 2 MiB stay in a cache, and memory stays bounded.
CHUNK_ELEMENTS = 2**18  # candidates times outcomes
CHUNK_ELEMENTS_ON_ACCELERATOR = 2**22  # 32 MiB, as every chunk costs launches
MIN_CHUNK = 32  # candidates; products of fewer rows are slower


class Outcomes(NamedTuple):
    """What the columns of fitness beyond the first mean, as the problem gives them.

    weights: an `(S,)` tensor of at least 0, what each outcome weighs in the fitness.
    by_sign: an `(S,)` tensor of bool, whether an outcome counts by being above 0, else as it is.
    groups: an `(S,)` tensor of whole numbers from 0. Outcomes of one group, such as the margins of
        one task, have one unit. By default all are one group.
    """

    weights: torch.Tensor
    by_sign: torch.Tensor
    groups: torch.Tensor | None = None


def winsorize(fitness: torch.Tensor) -> torch.Tensor:
    """Cap every column as far above its median as its best is below it; failures get the cap.

    Bad fitness may be bad by orders of magnitude. A process whose length scales are the same
    everywhere would model nothing else.

    :param fitness: an `(N, S)` tensor, minimised, inf where an evaluation failed, NaN where nothing
        was observed.
    :return: an `(N, S)` tensor of finite numbers, and NaN where nothing was observed.
    """
    scored = torch.where(fitness.isfinite(), fitness, torch.nan)
    cap = 2 * scored.nanmedian(0).values - scored.nan_to_num(nan=torch.inf).amin(0)  # (S,)
    return torch.minimum(fitness, cap.nan_to_num(0.0, posinf=0.0, neginf=0.0))


@dataclass(frozen=True)
class SurrogateSettings:
    """Settings of the surrogate and of the choice of points. Lengths are in half widths of the box.

    The defaults were chosen on trial seeds of the synthetic suite and then frozen
    (benchmarks/results/surrogate_design.md).
    """

    # The Gaussian process.
    kernel: Kernel = MATERN52
    """Correlation of distances, and its slope."""
    prior: Prior = PRIOR
    """Of length scales; short ones, so that the first few evaluations are not taken for noise."""
    max_points: int = 256
    """Evaluations that the process uses, the best: a Cholesky factor costs their cube."""
    max_fit_points: int = 128
    """Points that hyper-parameters are fitted to, the best."""

    # What outcomes mean.
    score_transform: Callable[[torch.Tensor], torch.Tensor] = winsorize
    """Of fitness `(N, 1)` without outcomes, and of outcomes `(N, S)` that count as they are."""
    squash: float = 2.0
    """Outcomes that count by sign are bent by tanh beyond this multiple of their median size."""
    noise_std: float = 0.3
    """Added to what decides about a sign, in median sizes: other examples would decide otherwise.
    """
    recommend_noise_std: float = 0.6
    """The same for the perturbations of a point, by which points are recommended."""

    # Acquisition.
    beta: float = 1.0
    """Scale of the random multiple of a deviation in the confidence bound."""
    score_beta: float = 2.0
    """The same without outcomes: a score alone says less, and its predictions err more."""
    sum_deviation: float = 0.3
    """Deviation of a sum of outcomes, in sums of their deviations: they err together in part."""
    exploit_every: int = 5
    """The first of so many points of a batch has the best mean over perturbations; 0 for none."""
    perturbations: int = 16
    """Perturbed copies of a point over which its predicted fitness is averaged."""
    perturbation_std: float = 0.05
    """Their deviation from the point."""

    # Candidates.
    candidate_rounds: int = 4
    """Rounds of candidates; each is drawn around the best of the rounds before."""
    parents: int = 10
    """Best points that candidates are drawn around."""
    gaussian_candidates: int = 1000
    """Candidates of a round by Gaussian noise around parents."""
    gaussian_stds: tuple[float, ...] = (0.03, 0.1, 0.3)
    """Deviations of that noise."""
    crossover_candidates: int = 500
    """Candidates of a round on lines through a parent and another point."""
    elites: int = 30
    """Best candidates of a round that become parents of the next."""
    shortlist: int = 500
    """Candidates from which a batch or a recommendation is chosen."""
    local_search_steps: int = 4
    """Rounds of the search for a recommendation around the best points."""

    # The start.
    initial_std: float = 0.5
    """Distance of initial points from the average, times 1/sqrt(n) a coordinate."""
    coarse_points_per_block: int = 4
    """How many points for each block, at the start, have one value a block; 0 for none."""


def expected_fitness(
    process: GaussianProcess,
    posterior: Posterior,
    weights: torch.Tensor,
    by_sign: torch.Tensor,
    noise_std: torch.Tensor | float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted fitness of C candidates, and the expected signs of their outcomes.

    :param posterior: of these candidates.
    :param weights: an `(S,)` tensor, weights of the outcomes as the process has them.
    :param by_sign: an `(S,)` tensor, see `Outcomes`.
    :param noise_std: a deviation of outcomes beside the process's own.
    :return: a `(C,)` tensor, and a `(C, S)` tensor between -1 and 1.
    """
    scales = process.membership * process.scale.square()  # (B, S)
    noise = process.noise * process.scale.square() + noise_std**2  # (S,)
    # In place, as new memory would take longer than the arithmetic.
    spread = torch.addmm(2 * noise, posterior.variance, 2 * scales).sqrt_()  # (C, S)
    signs = torch.div(posterior.means, spread, out=spread).erf_()  # P(above 0) - P(below 0)
    sign_weights, other_weights = weights * by_sign, weights * ~by_sign
    predicted = (signs @ sign_weights + sign_weights.sum()) / 2 + posterior.means @ other_weights
    return predicted, signs


def predict_fitness(
    process: GaussianProcess,
    posterior: Posterior,
    weights: torch.Tensor,
    by_sign: torch.Tensor,
    noise_std: torch.Tensor | float = 0.0,
    sum_deviation: float = 0.3,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted fitness of C candidates, and by how much it may deviate.

    :param posterior: of these candidates.
    :param weights: as of `expected_fitness`.
    :param by_sign: as of `expected_fitness`.
    :param noise_std: as of `expected_fitness`.
    :param sum_deviation: see `SurrogateSettings`.
    :return: two `(C,)` tensors.
    """
    predicted, signs = expected_fitness(process, posterior, weights, by_sign, noise_std)
    variance = posterior.variance  # (C, B)
    by_block = process.membership * weights.abs()  # (B, S)
    # The deviation of a coin is sqrt(p (1 - p)), with p = (1 + sign) / 2.
    coins = (1 - signs).mul_(signs.add_(1)).sqrt_() @ (by_block * by_sign).T / 2  # (C, B)
    resolved = (variance / (variance + process.noise)).sqrt()  # the share that an evaluation ends
    others = variance.sqrt() * ((by_block * ~by_sign) @ process.scale)  # (C, B)
    factor = sum_deviation if len(weights) > 1 else 1.0
    return predicted, factor * (coins * resolved + others).sum(1)


class Surrogate:
    """The Gaussian process with the meaning of its outcomes: it predicts fitness.

    Not of these examples alone. An answer that is right by a hair counts little more than one that
    is wrong by a hair: on other examples it would as often be the other way round. Without that the
    search finds points that put many examples just above 0, and loses on unseen examples what it
    gains on these (benchmarks/results/surrogate_design.md).
    """

    def __init__(
        self,
        points: torch.Tensor,
        fitness: torch.Tensor,
        weights: torch.Tensor,
        by_sign: torch.Tensor,
        groups: torch.Tensor | None = None,
        settings: SurrogateSettings | None = None,
    ):
        """Fit the process.

        :param points: an `(N, n)` tensor in units of the box, best first.
        :param fitness: an `(N, 1 + S)` tensor, minimised; the first column is the fitness, the
            others are its outcomes.
        :param weights: an `(S,)` tensor, see `Outcomes`; empty without outcomes.
        :param by_sign: an `(S,)` tensor, see `Outcomes`.
        :param groups: an `(S,)` tensor, see `Outcomes`.
        """
        self.settings = settings or SurrogateSettings()
        self.has_outcomes = len(weights) > 0
        if self.has_outcomes:
            self.beta = self.settings.beta
            self.weights, self.by_sign = weights.double(), by_sign.bool()
            outcomes = fill_failures(fitness[:, 1:])
            size = median_sizes(outcomes, self.by_sign, groups)  # (S,)
            self.noise_std = self.settings.noise_std * size
            self.recommend_noise_std = self.settings.recommend_noise_std * size
            bend = self.settings.squash * size
            bent = bend * torch.tanh(outcomes / bend)
            capped = self.settings.score_transform(outcomes)
            outcomes = torch.where(self.by_sign, bent, capped)
        else:
            self.beta = self.settings.score_beta
            self.weights, self.by_sign = torch.ones(1).double(), torch.zeros(1, dtype=torch.bool)
            outcomes = self.settings.score_transform(fitness[:, :1])
            self.noise_std = self.recommend_noise_std = torch.zeros(1)
        self.process = GaussianProcess(
            points,
            outcomes,
            kernel=self.settings.kernel,
            prior=self.settings.prior,
            max_fit_points=self.settings.max_fit_points,
        )

    def predict(self, points: torch.Tensor, noise_std: torch.Tensor | None = None) -> torch.Tensor:
        """Predicted fitness of `(C, n)` points, up to a constant, a `(C,)` tensor.

        :param noise_std: in place of the one for choosing a batch.
        """
        noise_std = self.noise_std if noise_std is None else noise_std
        predictions = []
        for chunk in self._chunks(points):
            posterior = self.process.posterior(chunk)
            predicted, _ = expected_fitness(
                self.process, posterior, self.weights, self.by_sign, noise_std
            )
            predictions.append(predicted)
        return torch.cat(predictions)

    def predict_points_with_deviation(
        self, points: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted fitness of points, and by how much it may deviate.

        :param points: a `(C, n)` tensor.
        :return: two `(C,)` tensors.
        """
        predictions, deviations = [], []
        for chunk in self._chunks(points):
            predicted, deviation = self.predict_with_deviation(self.process.posterior(chunk))
            predictions.append(predicted)
            deviations.append(deviation)
        return torch.cat(predictions), torch.cat(deviations)

    def _chunks(self, points: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Points in chunks of about `CHUNK_ELEMENTS` predicted outcomes."""
        columns = max(len(self.process.points), len(self.weights))
        on_cpu = points.device.type == "cpu"
        elements = CHUNK_ELEMENTS if on_cpu else CHUNK_ELEMENTS_ON_ACCELERATOR
        return points.split(max(MIN_CHUNK, elements // columns))

    def predict_with_deviation(
        self, posterior: Posterior, noise_std: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted fitness of the C candidates of a posterior, and by how much it may deviate.

        :param noise_std: in place of the one for choosing a batch.
        :return: two `(C,)` tensors.
        """
        noise_std = self.noise_std if noise_std is None else noise_std
        return predict_fitness(
            self.process,
            posterior,
            self.weights,
            self.by_sign,
            noise_std,
            self.settings.sum_deviation,
        )

    def predict_around(self, points: torch.Tensor) -> torch.Tensor:
        """Mean predicted fitness of perturbed copies of `(C, n)` points, a `(C,)` tensor.

        Another set of examples is like another place nearby: what is good here by a hair is not
        good there. Without outcomes it is the prediction for the points themselves.
        """
        if not self.has_outcomes:
            return self.predict(points)
        shape = self.settings.perturbations, points.shape[1]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(shape, generator=generator, dtype=points.dtype, device="cpu")
        noise = noise.to(points)
        copies = points + self.settings.perturbation_std * noise[:, None]  # (copies, C, n)
        predicted = self.predict(copies.flatten(0, 1), self.recommend_noise_std)
        return predicted.view(copies.shape[:2]).mean(0)


def median_sizes(
    outcomes: torch.Tensor, by_sign: torch.Tensor, groups: torch.Tensor | None
) -> torch.Tensor:
    """For each outcome that counts by its sign the median size in its group, else 1.

    :param outcomes: an `(N, S)` tensor, NaN where nothing was observed.
    :param by_sign: an `(S,)` tensor, see `Outcomes`.
    :param groups: an `(S,)` tensor, see `Outcomes`; by default all are one group.
    :return: an `(S,)` tensor in the unit of each outcome.
    """
    if groups is None:
        groups = torch.zeros(outcomes.shape[1], dtype=torch.int64)
    sizes = torch.ones(outcomes.shape[1], dtype=outcomes.dtype)
    for group in groups[by_sign].unique():
        members = by_sign & (groups == group)
        median = outcomes[:, members].abs().nanmedian()
        sizes[members] = median.nan_to_num(1.0).clamp_min(1e-9)
    return sizes


def smoothed_fitness(
    outcomes: torch.Tensor,
    weights: torch.Tensor,
    by_sign: torch.Tensor,
    noise_std: torch.Tensor,
) -> torch.Tensor:
    """The fitness that observed outcomes would have in the mean over noise, an `(N,)` tensor.

    An outcome that counts by its sign counts as the probability that it stays above 0.

    :param outcomes: an `(N, S)` tensor.
    :param noise_std: an `(S,)` tensor, the deviation of the noise of outcomes that count by sign.
    """
    above = torch.special.ndtr(outcomes / noise_std)
    return torch.where(by_sign, above, outcomes) @ weights


def fill_failures(outcomes: torch.Tensor) -> torch.Tensor:
    """Outcomes in which failed evaluations are as bad as the worst that did not fail.

    A row with some outcomes was pruned before the others: these stay unknown, NaN.

    :param outcomes: an `(N, S)` tensor, minimised.
    """
    finite = outcomes.isfinite()
    outcomes = torch.where(finite, outcomes, torch.nan)
    worst = torch.where(finite, outcomes, -torch.inf).amax(0).nan_to_num(neginf=1.0)  # (S,)
    return torch.where(finite.any(1, keepdim=True), outcomes, worst)
