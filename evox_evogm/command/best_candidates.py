"""The best merges of a history, ranked by the score that is expected, not by the observed one."""

from collections.abc import Sequence
from typing import Any

import torch

from evox_evogm.algorithms.blocks import are_coarse, first_of_blocks
from evox_evogm.algorithms.gradient_search import GradientSearch
from evox_evogm.algorithms.process_device import in_float64, outcomes_on, process_device
from evox_evogm.algorithms.surrogate import Outcomes, Surrogate
from evox_evogm.algorithms.surrogate_evogm import SurrogateEvoGM
from evox_evogm.command.multi_objective import front_of
from evox_evogm.problems.lora_merge import LoRAMergeProblem


def best_candidates(
    algorithm: Any,
    problem: LoRAMergeProblem,
    records: Sequence[dict],
    recommended: torch.Tensor,
    count: int,
) -> torch.Tensor:
    """The recommended merge and the next best, which all were evaluated whole.

    They are ordered by the algorithm's own smoothed fitness, see `smoothed_fitness_of`. Merges that
    keep all constraints come first, and with several objectives only those of the front take part.
    Merges whose weights are the same in the dtype of the base count once.

    :param algorithm: as the workflow steps it.
    :param records: the history.
    :param recommended: `(n g,)` effective coefficients.
    :param count: k.
    :return: a `(k, n g)` tensor, or fewer rows where there are no more; the recommended first.
    """
    whole = []
    for record in records:
        if record["score"] is not None and "estimate" not in record:
            whole.append(record)
    if problem.objectives == "tasks":
        whole = front_of(whole, problem.objective.floor if problem.objective.constraints else None)
    points = torch.tensor([record["coefficients"] for record in whole])  # (N, n g)
    if problem.objectives == "tasks":
        expected = -torch.tensor([record["score"] for record in whole])
    else:
        expected = smoothed_fitness_of(algorithm, points, -problem.cached_fitness(points))
    lacking = [problem.objective.violation(record["tasks"]) for record in whole]
    order = sorted(range(len(whole)), key=lambda row: (lacking[row], float(expected[row])))
    ranked = torch.cat([recommended.cpu()[None], points[order]])
    return ranked[problem.cache.first_of_each(ranked)[:count]]


def smoothed_fitness_of(
    algorithm: Any, points: torch.Tensor, fitness: torch.Tensor
) -> torch.Tensor:
    """What an algorithm expects of evaluated points, an `(N,)` tensor, minimised.

    - `SurrogateEvoGM`: the mean prediction of its surrogate over perturbed copies, by which it
      recommends.
    - `GradientSearch`: the smoothed fitness.
    - Others: the fitness.

    :param points: an `(N, n)` tensor, what was evaluated.
    :param fitness: an `(N, M)` or `(N,)` tensor, minimised, as the algorithm was given it.
    """
    fitness = fitness.view(len(points), -1)
    if isinstance(algorithm, GradientSearch):
        return algorithm.smoothed(fitness.to(algorithm.outcome_weights)).cpu()
    if not isinstance(algorithm, SurrogateEvoGM):
        return fitness[:, 0].cpu()
    outcomes = Outcomes(
        algorithm.outcome_weights, algorithm.outcome_by_sign, algorithm.outcome_groups
    )
    order = fitness[:, 0].argsort()[: algorithm.settings.max_points]  # best first
    in_box = (points.to(algorithm.center) - algorithm.center) / algorithm.half_width
    if are_coarse(in_box, algorithm.blocks):
        in_box = first_of_blocks(in_box, algorithm.blocks)
    device = process_device(in_box.device)
    with torch.device(device):
        evaluated, values = in_float64(in_box[order], fitness[order], device)
        meaning = outcomes_on(outcomes, device)
        surrogate = Surrogate(evaluated, values, *meaning, algorithm.settings)
        return surrogate.predict_around(in_box.to(device).double()).cpu()
