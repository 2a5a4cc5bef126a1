"""The standard error of what a search makes large: a mean, the worst task, or a harmonic mean."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evox_evogm.command.uncertainty import standard_errors
from evox_evogm.problems.scalarization import Objective

if TYPE_CHECKING:
    from evox_evogm.problems.lora_merge import LoRAMergeProblem

Numbers = Mapping[str, float]  # by task


def objective_error(objective: Objective, means: Numbers, errors: Numbers) -> float:
    """The standard error of an objective's value, to first order; NaN if one is unknown.

    :param objective: a weighted mean, the worst task or a weighted harmonic mean.
    :param means: the mean score of each task.
    :param errors: the standard error of each.
    """
    if not means:
        return math.nan
    if objective.kind == "worst":
        return errors.get(min(means, key=lambda name: means[name]), math.nan)
    total = sum(objective.weight(name) for name in means)
    squares = 0.0
    for name, score in means.items():
        slope = objective.weight(name) / total
        if objective.kind == "harmonic":
            if not score > 0:
                return math.nan
            slope *= (objective.value(means) / score) ** 2
        squares += (slope * errors.get(name, math.nan)) ** 2
    return math.sqrt(squares)


def harmonic_error(scores: Sequence[float], errors: Sequence[float]) -> float:
    """The standard error of the harmonic mean of scores; NaN where one is not above 0 or unknown.

    :param errors: the standard error of each score.
    """
    by_place = {str(place): score for place, score in enumerate(scores)}
    if not all(score > 0 for score in scores):
        return math.nan
    known = {str(place): error for place, error in enumerate(errors)}
    return objective_error(Objective("harmonic"), by_place, known)


def error_of_record(record: Mapping, problem: "LoRAMergeProblem") -> float:
    """The standard error of the score of an evaluation in the history; NaN if it is unknown.

    :param record: with scores by example.
    :param problem: that made the evaluation.
    """
    from evox_evogm.command.scores import each_once

    if record.get("score") is None or "estimate" in record or "examples" not in record:
        return math.nan
    errors = standard_errors(each_once(problem.tasks, record["examples"]))
    return objective_error(problem.objective, record["tasks"], errors)
