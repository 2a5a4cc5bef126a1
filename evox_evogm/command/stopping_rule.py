"""The setting `stop`: a search ends before its budget where it gains too little."""

from collections.abc import Sequence
from typing import Any

import torch

from evox_evogm.algorithms.stopping import GAIN, WINDOW, should_stop
from evox_evogm.command.search_algorithm import RECOMMENDING, cost_of_point
from evox_evogm.command.settings import RunSettings
from evox_evogm.monitoring.progress import ROUNDING
from evox_evogm.problems.lora_merge import LoRAMergeProblem


def least_gain(settings: RunSettings, problem: LoRAMergeProblem) -> float | None:
    """What the last evaluations have to gain for a search to go on; None if it always does.

    `auto` knows what is little where scores are shares of right answers, and only there.
    """
    if settings.stop != "auto":
        return settings.stop
    _, by_sign, _ = problem.outcomes
    return GAIN if bool(by_sign.all()) else None


def has_converged(
    settings: RunSettings, algorithm: Any, problem: LoRAMergeProblem, records: Sequence[dict]
) -> bool:
    """Whether a search should end after its last step, by its history.

    :param algorithm: as the workflow steps it. Only those that recommend a point can tell.
    :param records: of the steps, in order.
    """
    gain = least_gain(settings, problem)
    if gain is None or not isinstance(algorithm, RECOMMENDING):
        return False
    scored = [record["coefficients"] for record in records if record["score"] is not None]
    cost = cost_of_point(settings)
    if cost * len(scored) < 2 * WINDOW - ROUNDING:
        return False
    points = torch.tensor(scored)
    return should_stop(algorithm, points, -problem.cached_fitness(points), cost=cost, gain=gain)


def describe_stop(settings: RunSettings) -> str:
    """What `result.json` says of a search that ended before its budget."""
    gain = GAIN if settings.stop == "auto" else settings.stop
    return (
        f"the search ended before its budget, as its last {WINDOW} evaluations gained less than "
        f"{gain:g} (stop: {settings.stop}); it goes on with stop=null"
    )
