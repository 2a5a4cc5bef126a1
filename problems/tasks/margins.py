"""By how much answers are right, and how these margins count in the mean over tasks."""

from collections.abc import Mapping, Sequence

import torch

from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.task import METRIC_NAMES, Task

LEAST_MARGIN = 1e-6  # of a right answer, whose margin has to be above 0


def signed(size: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Margins with the sign that their scores have.

    Ties, and texts that are right in other tokens than the target's, are decided elsewhere.

    :param size: margins whose sign may differ.
    :param right: scores of 0 or 1, of the same shape.
    """
    return torch.where(right > 0.5, size.abs().clamp_min(LEAST_MARGIN), -size.abs())


# Metrics of 0 or 1. Their margin is above 0 if and only if the score is 1: how far the right answer
# is ahead of the others, in logits or nats. The margin of the other metrics is the score.
METRICS_BY_SIGN = frozenset(METRIC_NAMES) - {"gold_log_probability", "abstain_qa"}


def counts_by_sign(task: Task) -> bool:
    """Whether the margins of a task count by being above 0."""
    if isinstance(task, CustomTask):
        return task.counts_by_sign
    return task.metric in METRICS_BY_SIGN


def smoothed_gradient(
    margins: Mapping[str, torch.Tensor],
    derivatives: Mapping[str, torch.Tensor],
    tasks: Sequence[Task],
    shares: Sequence[float] | None = None,
) -> torch.Tensor:
    """The gradient of the mean over tasks and examples of smoothed scores.

    The smoothed score of a margin that counts by its sign is 1 / (1 + exp(-margin)): examples near
    the border count most. Its slope is taken at the margin, and the derivatives are those of a
    smooth form of it, see `metrics.METRICS`. Other margins are scores, and count as they are.

    :param margins: by task name a `(P, S)` tensor.
    :param derivatives: by task name a `(P, S, n g)` tensor.
    :param shares: of each task in the mean; equal by default.
    :return: a `(P, n g)` tensor.
    """
    total = torch.zeros(())
    for number, task in enumerate(tasks):
        of_margins = derivatives[task.name]
        if counts_by_sign(task):
            smoothed = margins[task.name].sigmoid()
            of_margins = of_margins * (smoothed * (1 - smoothed))[..., None]
        of_task = of_margins.mean(1)
        total = total + (of_task if shares is None else shares[number] * of_task)
    return total / len(tasks) if shares is None else total


def outcomes_of(
    tasks: Sequence[Task], shares: Sequence[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How the margins of all examples, one task after another, count in the mean over tasks.

    :param shares: of each task in the mean; equal by default.
    :return: three `(S,)` tensors: the weight of each margin, whether it counts by being above 0,
        and the number of its task, whose margins have one unit.
    """
    weights = []
    by_sign = []
    groups = []
    for number, task in enumerate(tasks):
        size = len(task.examples)
        weight = 1 / (len(tasks) * size) if shares is None else shares[number] / size
        weights += [weight] * size
        by_sign += [counts_by_sign(task)] * size
        groups += [number] * size
    return (
        torch.tensor(weights, dtype=torch.float32),
        torch.tensor(by_sign),
        torch.tensor(groups),
    )
