"""The point to take when a search is over: predicted to be best, not the best that was observed."""

import torch

from evox_evogm.algorithms.acquisition import draw_candidates
from evox_evogm.algorithms.blocks import (
    are_coarse,
    block_bounds,
    first_of_blocks,
    spread_blocks,
)
from evox_evogm.algorithms.process_device import CPU, in_float64, outcomes_on, process_device
from evox_evogm.algorithms.surrogate import (
    Outcomes,
    Surrogate,
    SurrogateSettings,
    fill_failures,
    median_sizes,
    smoothed_fitness,
)


def find_optimum(surrogate: Surrogate, points: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """The point with the best mean prediction over perturbed copies, by local search.

    :param points: an `(N, n)` tensor; the search goes on around the best of these.
    :param bounds: a `(2, n)` tensor, the lowest and the highest point.
    :return: an `(n,)` tensor inside the bounds.
    """
    generator = torch.Generator().manual_seed(0)
    best, predicted = keep_elites(surrogate, points)
    for _ in range(surrogate.settings.local_search_steps):
        candidates = draw_candidates(best, predicted, bounds, surrogate.settings, generator)
        best, predicted = keep_elites(surrogate, torch.cat([best, candidates]))
    return best[0]


def keep_elites(surrogate: Surrogate, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best points by their mean prediction over perturbed copies.

    :param points: an `(N, n)` tensor; copies are made of a shortlist.
    :return: an `(E, n)` tensor, best first, and the `(E,)` predictions.
    """
    settings = surrogate.settings
    points = points[surrogate.predict(points).argsort()[: settings.shortlist]]
    predicted, order = surrogate.predict_around(points).sort()
    return points[order[: settings.elites]], predicted[: settings.elites]


def recommend(
    points: torch.Tensor,
    fitness: torch.Tensor,
    outcomes: Outcomes,
    bounds: torch.Tensor,
    settings: SurrogateSettings,
    *,
    blocks: int | None = None,
    evaluated_only: bool = False,
) -> torch.Tensor:
    """The point to take after a search: the optimum of the surrogate, or an evaluated point.

    An evaluated one without outcomes, and where evaluations were pruned: the later outcomes are
    then known at few points, and predictions do not carry far.

    :param points: an `(N, n)` tensor in units of the box, what was evaluated.
    :param fitness: an `(N, 1 + S)` tensor, minimised, as of `Surrogate`.
    :param outcomes: what the S columns mean; with weights `(0,)` if there are none.
    :param bounds: a `(2, n)` tensor, the lowest and the highest point.
    :param blocks: how many blocks of equal length the coordinates form; n by default. Where all
        evaluated points have one value a block, so has the recommended one.
    :param evaluated_only: take an evaluated point in any case. So it has to be where the worst
        points were dropped: the process does not learn where fitness gets worse.
    :return: an `(n,)` tensor.
    """
    dim = points.shape[1]
    blocks = blocks or dim
    if are_coarse(points, blocks):
        points, bounds = first_of_blocks(points, blocks), block_bounds(bounds, blocks)
    device = process_device(points.device)
    with torch.device(device):
        evaluated, values = in_float64(points, fitness, device)
        surrogate = Surrogate(evaluated, values, *outcomes_on(outcomes, device), settings)
        observed = values[:, 1:].isfinite()
        complete = observed.all(1)
        pruned = observed.any(1) & ~complete
        if not evaluated_only and observed.shape[1] and not pruned.any():
            optimum = find_optimum(surrogate, evaluated, bounds.to(device).double())
            return spread_blocks(optimum[None].to(points), dim)[0]
        predicted = surrogate.predict_around(evaluated)
        if complete.any():
            predicted = torch.where(complete, predicted, torch.inf)
        return spread_blocks(evaluated[predicted.argmin()][None].to(points), dim)[0]


def better_of(
    point: torch.Tensor,
    fitness: torch.Tensor,
    points: torch.Tensor,
    history: torch.Tensor,
    outcomes: Outcomes,
    settings: SurrogateSettings,
) -> torch.Tensor:
    """A recommended point, or an evaluated one that turned out to be better.

    Better is a smaller smoothed fitness: outcomes that count by their sign count as the probability
    that they do so on other examples. Of outcomes that count as they are, it is the fitness itself.

    :param point: an `(n,)` tensor.
    :param fitness: a `(1 + S,)` tensor, what the evaluation of the point gave, minimised.
    :param points: an `(N, n)` tensor, the evaluated points.
    :param history: an `(N, 1 + S)` tensor, their fitness with outcomes.
    :return: an `(n,)` tensor.
    """
    with torch.device("cpu"):
        together = torch.cat([fitness[None], history])
        candidates, values = in_float64(torch.cat([point[None], points]), together, CPU)
        weights, by_sign, groups = outcomes_on(outcomes, CPU)
        observed = values[:, 1:]
        sizes = median_sizes(fill_failures(observed), by_sign, groups)
        noise_std = settings.recommend_noise_std * sizes
        smoothed = smoothed_fitness(observed, weights.double(), by_sign, noise_std)
        smoothed = torch.where(smoothed.isfinite(), smoothed, torch.inf)  # failed or pruned
        return candidates[smoothed.argmin()].to(points)
