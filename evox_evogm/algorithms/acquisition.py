"""Which points are worth an evaluation: candidates, and a batch of them.

A batch is chosen point by point. Each choice is entered as if its mean had been observed (the
"kriging believer", D. Ginsbourger et al. 2010). A point is chosen by its lower confidence bound:
the predicted fitness less a random multiple of its deviation. Every few points one is chosen as the
recommendation is, by its mean prediction over perturbed copies.
"""

from typing import Any

import torch

from evox_evogm.algorithms.blocks import (
    are_coarse,
    block_bounds,
    count_coarse_points,
    first_of_blocks,
    spread_blocks,
)
from evox_evogm.algorithms.gaussian_process import Posterior
from evox_evogm.algorithms.process_device import in_float64, outcomes_on, process_device
from evox_evogm.algorithms.side_by_side import side_by_side
from evox_evogm.algorithms.surrogate import (
    Outcomes,
    Surrogate,
    SurrogateSettings,
)
from evox_evogm.algorithms.vmap_operator import vmap_operator


def draw_candidates(
    points: torch.Tensor,
    predicted: torch.Tensor,
    bounds: torch.Tensor,
    settings: SurrogateSettings,
    generator: torch.Generator,
) -> torch.Tensor:
    """Candidates by Gaussian noise around good points, and by crossover.

    :param points: an `(N, n)` tensor.
    :param predicted: an `(N,)` tensor, predicted fitness.
    :param bounds: a `(2, n)` tensor, the lowest and the highest point.
    :param generator: of the CPU's random numbers.
    :return: a `(C, n)` tensor inside the bounds, C the sum of the two kinds.
    """
    dim = points.shape[1]
    # Random numbers are those of the CPU on every device.
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    parents = points[predicted.argsort()[: settings.parents]]

    def draw(source: torch.Tensor, count: int) -> torch.Tensor:
        rows = torch.randint(len(source), (count,), generator=generator, device="cpu")
        return source[rows.to(source.device)]

    count = settings.gaussian_candidates
    stds = draw(torch.tensor(settings.gaussian_stds, dtype=torch.float64), count)[:, None]
    gaussian = draw(parents, count) + stds * torch.randn(count, dim, **options).to(points)

    count = settings.crossover_candidates
    start = draw(parents, count)
    factor = torch.rand(count, 1, **options).to(points) - 0.5
    crossover = start + factor * (start - draw(points, count))
    return torch.cat([gaussian, crossover]).clamp(*bounds)


def new_rows(candidates: torch.Tensor, evaluated: torch.Tensor) -> torch.Tensor:
    """Row numbers of candidates: each point once, and none that was evaluated.

    Points are cut off at the bounds, so that corners of the box come up often.

    :param candidates: a `(C, n)` tensor.
    :param evaluated: an `(N, n)` tensor.
    :return: the first row of every new point, in the order of the points' coordinates.
    """
    # `place` is the row in `points` of every evaluated point and every candidate.
    points, place = torch.cat([evaluated, candidates]).unique(dim=0, return_inverse=True)
    new = torch.ones(len(points), dtype=torch.bool)
    new[place[: len(evaluated)]] = False
    first = torch.zeros(len(points), dtype=torch.int64)
    rows = torch.arange(len(candidates))
    first.scatter_reduce_(0, place[len(evaluated) :], rows, "amin", include_self=False)
    return first[new]


def choose_batch(
    surrogate: Surrogate,
    candidates: torch.Tensor,
    count: int,
    generator: torch.Generator,
    predictions: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Row numbers `(count,)` of a batch out of `(C, n)` candidates, chosen one by one.

    :param candidates: a `(C, n)` tensor, C at least `count`.
    :param generator: of the CPU's random numbers.
    :param predictions: two `(C,)` tensors, predicted fitness of the candidates and its deviation,
        if known.
    """
    settings = surrogate.settings
    if predictions is None:
        predictions = surrogate.predict_points_with_deviation(candidates)
    predicted, deviation = predictions
    shortlist = (predicted - deviation).argsort()[: settings.shortlist + count]
    candidates = candidates[shortlist]
    predicted, deviation = predicted[shortlist], deviation[shortlist]
    posterior = surrogate.process.posterior(candidates)
    if settings.exploit_every:
        # What the perturbed copies of a candidate lose against the candidate itself.
        loss_around = surrogate.predict_around(candidates) - predicted

    chosen: list[int] = []
    # Per block, what each choice explains of the candidates.
    explained: list[list[torch.Tensor]] = [[] for _ in posterior.projected]
    for number in range(count):
        if number:
            predicted, deviation = surrogate.predict_with_deviation(posterior)
        beta = surrogate.beta * draw_one(generator).abs()
        value = predicted - beta * deviation
        if settings.exploit_every and number % settings.exploit_every == 0:
            value = value + loss_around
        value[chosen] = torch.inf
        choice = int(value.argmin())
        chosen.append(choice)
        believe_mean(surrogate, candidates, posterior, choice, explained)
    return shortlist[chosen]


def draw_one(generator: torch.Generator) -> torch.Tensor:
    """A standard normal number of the CPU, a `()` tensor."""
    return torch.randn((), generator=generator, dtype=torch.float64, device="cpu")


def believe_mean(
    surrogate: Surrogate,
    candidates: torch.Tensor,
    posterior: Posterior,
    choice: int,
    explained: list[list[torch.Tensor]],
) -> None:
    """Lower the variance of all candidates as if the chosen one had been evaluated.

    :param candidates: a `(C, n)` tensor.
    :param posterior: of the candidates; its variance is overwritten.
    :param choice: the row of the chosen candidate.
    :param explained: per block the `(C,)` tensors of earlier choices; one more is appended.
    """
    process = surrogate.process
    prior = process.covariance(candidates, candidates[choice : choice + 1])[:, 0]  # (C,)
    for block, (projected, updates) in enumerate(zip(posterior.projected, explained, strict=True)):
        covariance = prior - projected.T @ projected[:, choice]
        for update in updates:
            covariance = covariance - update * update[choice]
        scale = (covariance[choice].clamp_min(1e-12) + process.noise).sqrt()
        updates.append(covariance / scale)
        variance = posterior.variance[:, block] - updates[-1].square()
        posterior.variance[:, block] = variance.clamp_min(1e-9)


def select_for_one_run(
    points: torch.Tensor,
    fitness: torch.Tensor,
    count: torch.Tensor,
    bounds: torch.Tensor,
    weights: torch.Tensor,
    by_sign: torch.Tensor,
    groups: torch.Tensor,
    seed: torch.Tensor,
    *,
    pop_size: int,
    blocks: int,
    settings: SurrogateSettings,
) -> torch.Tensor:
    """`select_batch` for one run, whose tensors have no K."""
    if not int(count):
        raise ValueError("step: expected evaluated points, found none; call init_step first")
    dim = points.shape[1]
    first = count_coarse_points(blocks, points.shape[1], settings.coarse_points_per_block)
    few = int(count) < first
    if few and are_coarse(points[:count], blocks):
        points, bounds = first_of_blocks(points, blocks), block_bounds(bounds, blocks)
    device = process_device(points.device)
    with torch.device(device):  # whatever the default is
        generator = torch.Generator().manual_seed(int(seed))
        evaluated, values = in_float64(points[:count], fitness[:count], device)
        outcomes = outcomes_on(Outcomes(weights, by_sign, groups), device)
        surrogate = Surrogate(evaluated, values, *outcomes, settings)
        parents, predicted = evaluated, surrogate.predict(evaluated)
        bounds = bounds.to(device).double()
        rounds, predictions, deviations = [], [], []
        for _ in range(max(1, settings.candidate_rounds)):
            fresh = draw_candidates(parents, predicted, bounds, settings, generator)
            expected, deviation = surrogate.predict_points_with_deviation(fresh)
            rounds.append(fresh)
            predictions.append(expected)
            deviations.append(deviation)
            best = expected.argsort()[: settings.elites]
            parents = torch.cat([parents, fresh[best]])
            predicted = torch.cat([predicted, expected[best]])
        candidates = torch.cat(rounds)
        rows = new_rows(candidates, evaluated)
        known = torch.cat(predictions)[rows], torch.cat(deviations)[rows]
        batch = choose_batch(surrogate, candidates[rows], pop_size, generator, known)
        return spread_blocks(candidates[rows[batch]].to(points), dim)


# A schema of operators takes no objects: settings are passed by their place in this list.
_SETTINGS: list[SurrogateSettings] = []


def settings_number(settings: SurrogateSettings) -> int:
    """The number by which `select_batch` finds some settings; equal settings have the same."""
    if settings not in _SETTINGS:
        _SETTINGS.append(settings)
    return _SETTINGS.index(settings)


def _shapes(points, *arguments):
    pop_size, *_ = arguments[-3:]
    return points.new_empty(len(points), pop_size, points.shape[-1])


@vmap_operator("evogm::select_batch", own_dims=(2, 2, 0, 2, 1, 1, 1, 0), shapes=_shapes)
def select_batch(
    points: torch.Tensor,
    fitness: torch.Tensor,
    count: torch.Tensor,
    bounds: torch.Tensor,
    weights: torch.Tensor,
    by_sign: torch.Tensor,
    groups: torch.Tensor,
    seed: torch.Tensor,
    pop_size: int,
    blocks: int,
    settings: int,
) -> torch.Tensor:
    """Populations that are worth an evaluation, for K runs side by side; computed in float64.

    As an operator it is called for one run, without K. Several runs are computed in threads on the
    CPU, and one after another on an accelerator. In threads of an H100's host 16 runs took 315 ms
    each; one alone takes 61 ms on the device.

    :param points: a `(K, N, n)` tensor in units of the box, the history.
    :param fitness: a `(K, N, 1 + S)` tensor, minimised; the first column is the fitness, the others
        are its outcomes.
    :param count: a `(K,)` tensor, rows in use.
    :param bounds: a `(K, 2, n)` tensor, the lowest and the highest point.
    :param weights: a `(K, S)` tensor, see `Outcomes`; empty without outcomes.
    :param by_sign: a `(K, S)` tensor, see `Outcomes`.
    :param groups: a `(K, S)` tensor, see `Outcomes`.
    :param seed: a `(K,)` tensor of whole numbers.
    :param pop_size: P, how many points.
    :param blocks: how many blocks of equal length the coordinates form. The first
        `settings.coarse_points_per_block` times `blocks` points have one value a block.
    :param settings: by `settings_number`.
    :return: a `(K, P, n)` tensor inside the bounds.
    """

    def select(*run: torch.Tensor) -> torch.Tensor:
        return select_for_one_run(
            *run, pop_size=pop_size, blocks=blocks, settings=_SETTINGS[settings]
        )

    tensors = (points, fitness, count, bounds, weights, by_sign, groups, seed)
    if len(points) == 1:
        return select(*[tensor[0] for tensor in tensors])[None]
    if process_device(points.device).type != "cpu":
        return torch.stack([select(*run) for run in zip(*tensors, strict=True)])
    runs = list(zip(*[tensor.cpu() for tensor in tensors], strict=True))
    return torch.stack(side_by_side(select, runs)).to(points.device)
