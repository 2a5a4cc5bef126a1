"""The fitness that a search sees of an evaluation: one number, a number per task, or a number with
all margins, and with its gradient.
"""

import math
from collections.abc import Callable, Sequence

from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.tasks.task import Task


def mean_objective(evaluation: Evaluation, tasks: Sequence[Task]) -> float:
    """The score of the merge, see `Objective`; -inf if the evaluation failed."""
    return evaluation.score


def task_objectives(evaluation: Evaluation, tasks: Sequence[Task]) -> list[float]:
    """The mean score of each of M tasks, below all others where a constraint is broken.

    Those of a failed evaluation are below all others and finite: with infinite ones, algorithms
    that scale objectives compute NaN.
    """
    by_task = evaluation.by_task
    if not by_task:
        return [evaluation.objective.failed(tasks)] * len(tasks)
    return [evaluation.objective.penalize(score, by_task) for score in by_task.values()]


def outcome_objectives(evaluation: Evaluation, tasks: Sequence[Task]) -> list[float]:
    """The mean score over tasks and the margins of all S examples; NaN for those that were not
    evaluated.
    """
    columns = [evaluation.score]
    for task in tasks:
        columns += evaluation.margins_of(task.name, len(task.examples))
    return columns


def gradient_objectives(evaluation: Evaluation, tasks: Sequence[Task]) -> list[float]:
    """The mean score over tasks, the margins of all S examples, and the gradient of the smoothed
    score by all coefficients; NaN of a failed evaluation.
    """
    columns = outcome_objectives(evaluation, tasks)
    columns += evaluation.gradient or [math.nan] * len(evaluation.coefficients)
    return columns


OBJECTIVES: dict[str, Callable[[Evaluation, Sequence[Task]], float | list[float]]] = {
    "mean": mean_objective,
    "tasks": task_objectives,
    "outcomes": outcome_objectives,
    "gradients": gradient_objectives,
}
