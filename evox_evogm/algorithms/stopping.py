"""When to stop a search: when its last evaluations have gained little.

Gains shrink as a search goes on, so the next evaluations are expected to gain no more than the
last ones did. Both measures of a gain count the noise of a score on few examples: they compare what
is expected of points on other examples, not the best scores that were seen.

Stopping on the surrogate's view of what is left is due to A. Makarova et al., "Automatic
Termination for Hyperparameter Optimization", AutoML 2022. Their bound on the regret stays far above
any gain here, where it sums hundreds of outcomes that do not err together
(benchmarks/results/stopping.md).
"""

from typing import Protocol

import torch

from evox_evogm.algorithms.blocks import are_coarse, block_bounds, first_of_blocks
from evox_evogm.algorithms.process_device import in_float64, outcomes_on, process_device
from evox_evogm.algorithms.recommendation import recommend
from evox_evogm.algorithms.surrogate import Outcomes, Surrogate, SurrogateSettings

GAIN = 0.005  # of a mean score: less than this is not worth the evaluations of a window
WINDOW = 30  # evaluations whose gain is looked at
CHECKS = 5  # how often in a window


class Measured(Protocol):
    """A search that says what its last evaluations have gained."""

    pop_size: int

    def recent_gain(self, points: torch.Tensor, fitness: torch.Tensor, last: int) -> float:
        """The gain in fitness of the last evaluations, see `SurrogateEvoGM.recent_gain`."""
        ...


def should_stop(
    algorithm: Measured,
    points: torch.Tensor,
    fitness: torch.Tensor,
    *,
    cost: float = 1.0,
    gain: float = GAIN,
) -> bool:
    """Whether a search should end after its last step.

    It has to have made two windows of evaluations. It is then looked at `CHECKS` times a window.

    :param algorithm: `SurrogateEvoGM` or `GradientSearch`.
    :param points: an `(N, n)` tensor, what was evaluated, in order.
    :param fitness: an `(N, M)` tensor, minimised, as the algorithm was given it.
    :param cost: of a point, in evaluations.
    :param gain: in fitness, the least that a window has to gain.
    :return: True if the search should end.
    """
    last = max(1, round(WINDOW / cost))
    every = max(1, last // CHECKS)
    count = len(points)
    checked = count // every > (count - algorithm.pop_size) // every
    if count < 2 * last or not checked:
        return False
    return algorithm.recent_gain(points, fitness, last) < gain


def gain_by_surrogate(
    points: torch.Tensor,
    fitness: torch.Tensor,
    outcomes: Outcomes,
    bounds: torch.Tensor,
    last: int,
    settings: SurrogateSettings | None = None,
    *,
    blocks: int | None = None,
) -> float:
    """What the last evaluations have improved the recommended point by.

    The points that a search would have recommended before them and after them are compared by the
    surrogate of all evaluations, as recommendations are: by the mean over perturbed copies.

    :param points: an `(N, n)` tensor in units of the box, in the order of evaluation.
    :param fitness: an `(N, 1 + S)` tensor, minimised, as of `Surrogate`.
    :param outcomes: what the S columns mean; with weights `(0,)` if there are none.
    :param bounds: a `(2, n)` tensor, the lowest and the highest point.
    :param last: how many evaluations, fewer than N.
    :param settings: of the surrogate.
    :param blocks: as in `recommend`.
    :return: a difference in fitness, above 0 where the later recommendation is better.
    :raises ValueError: if there are not so many evaluations.
    """
    if not 0 < last < len(points):
        raise ValueError(f"last: expected 1 to {len(points) - 1} evaluations, found {last}")
    settings = settings or SurrogateSettings()
    blocks = blocks or points.shape[1]
    if are_coarse(points, blocks):
        points, bounds = first_of_blocks(points, blocks), block_bounds(bounds, blocks)
    early = fitness[:-last, 0].argsort()[: settings.max_points]  # best first
    order = fitness[:, 0].argsort()[: settings.max_points]
    before = recommend(points[early], fitness[early], outcomes, bounds, settings, blocks=blocks)
    now = recommend(points[order], fitness[order], outcomes, bounds, settings, blocks=blocks)
    device = process_device(points.device)
    with torch.device(device):
        evaluated, values = in_float64(points[order], fitness[order], device)
        surrogate = Surrogate(evaluated, values, *outcomes_on(outcomes, device), settings)
        compared = torch.stack([before, now]).to(device).double()
        expected = surrogate.predict_around(compared)
        return float(expected[0] - expected[1])


def gain_by_windows(smoothed: torch.Tensor, last: int) -> float:
    """The mean of the last values of a noisy fitness, compared with that of as many before.

    :param smoothed: an `(N,)` tensor, minimised, in the order of evaluation, not finite where an
        evaluation failed.
    :param last: how many values, at most half of N.
    :return: a difference in fitness, above 0 where the last values are better.
    :raises ValueError: if there are not twice as many values.
    """
    if not 0 < last <= len(smoothed) // 2:
        raise ValueError(f"last: expected 1 to {len(smoothed) // 2} evaluations, found {last}")
    known = torch.where(smoothed.isfinite(), smoothed, torch.nan)
    return float(known[-2 * last : -last].nanmean() - known[-last:].nanmean())
