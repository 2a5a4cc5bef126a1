"""What merges reached on tasks, by example."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch

from evox_evogm.problems.tasks.task import Task


class TaskScores(NamedTuple):
    """What P merges reached on tasks.

    :param scores: by task name a `(P, S)` tensor on the CPU, higher is better.
    :param margins: the same for margins, see `margins.METRICS_BY_SIGN`.
    :param derivatives: by task name a `(P, S, n g)` tensor on the CPU, of the margins by the
        coefficients, see `metrics.METRICS`; empty if they were not asked for.
    :param failures: by row of a merge, why a function did not score it.
    """

    scores: dict[str, torch.Tensor]
    margins: dict[str, torch.Tensor]
    derivatives: dict[str, torch.Tensor]
    failures: Mapping[int, str] = MappingProxyType({})


def zeros_by_task(tasks: Sequence[Task], candidates: int) -> dict[str, torch.Tensor]:
    """By task name a `(P, S)` tensor on the CPU to write scores or margins to."""
    tables = {}
    for task in tasks:
        tables[task.name] = torch.zeros(candidates, len(task.examples), device="cpu")
    return tables
