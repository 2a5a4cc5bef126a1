"""One evaluation of one merge: the unit of the budget, and of the records that a run keeps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from evox_evogm.problems.scalarization import MEAN, Objective

# What a forward and a backward pass take, in forward passes, rounded up: 2.4 to 2.7 of those in
# unmerged mode, 3.0 to 3.1 in merged mode (benchmarks/results/gradients.md).
GRADIENT_COST = 3


@dataclass(frozen=True)
class Evaluation:
    """A merge and its scores.

    :param coefficients: the n g effective coefficients.
    :param scores: by task a number per example, higher is better. A failed evaluation has none. A
        pruned merge and one on a minibatch have those of the examples that were evaluated.
    :param seconds: its part of the time that the merges scored together took; 0 where the result
        was known.
    :param failure: why there are no scores, or None.
    :param margins: like `scores`, by how much each example is right; only where the objectives are
        outcomes.
    :param cost: in full evaluations: the fraction of the examples that was evaluated of a pruned
        merge; `GRADIENT_COST` with a gradient, divided by the number of minibatches.
    :param estimate: of a pruned merge's score, or None.
    :param gradient: the n g derivatives of the smoothed score by the coefficients; empty if they
        were not asked for.
    :param objective: how the scores of tasks become the score of the merge.
    :param places: of a minibatch, by task where its examples are among all. Otherwise they are the
        first ones.
    """

    coefficients: tuple[float, ...]
    scores: Mapping[str, Sequence[float]]
    seconds: float
    failure: str | None = None
    margins: Mapping[str, Sequence[float]] = field(default_factory=dict)
    cost: float = 1.0
    estimate: float | None = None
    gradient: Sequence[float] = ()
    objective: Objective = MEAN
    places: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @cached_property
    def by_task(self) -> dict[str, float]:
        """The mean score of each task; empty if the evaluation failed."""
        means = {}
        for name, values in self.scores.items():
            means[name] = float(torch.tensor(values, dtype=torch.float32, device="cpu").mean())
        return means

    @property
    def score(self) -> float:
        """What the objective makes of the tasks: their mean, unless it is another.

        The estimate of a pruned merge; -inf if the evaluation failed.
        """
        if self.estimate is not None:
            return self.estimate
        if not self.by_task:
            return float("-inf")
        return self.objective.score(self.by_task)

    @property
    def is_whole(self) -> bool:
        """Whether all examples were evaluated. Otherwise the score is an estimate."""
        return self.estimate is None and not self.places

    def margins_of(self, task: str, examples: int) -> list[float]:
        """The margins of all examples of a task; NaN of those that were not evaluated.

        :param task: its name.
        :param examples: how many it has.
        """
        margins = self.margins.get(task, ())
        columns = [math.nan] * examples
        for place, margin in zip(self.places.get(task, range(examples)), margins, strict=False):
            columns[place] = margin
        return columns

    def as_record(self) -> dict:
        """The evaluation as numbers, lists and texts, for a run's history."""
        record: dict[str, Any] = {
            "score": self.score if self.by_task else None,
            "tasks": self.by_task,
            "coefficients": list(self.coefficients),
            "examples": {name: list(values) for name, values in self.scores.items()},
            "seconds": round(self.seconds, 3),
        }
        if self.failure:
            record["failure"] = self.failure
        if self.margins:
            record["margins"] = {name: list(values) for name, values in self.margins.items()}
        if self.by_task and not self.is_whole:
            record["estimate"] = self.score
        if self.gradient:
            record["gradient"] = list(self.gradient)
        if self.cost != 1:
            record["cost"] = self.cost
        if self.places:
            record["places"] = {name: list(places) for name, places in self.places.items()}
        return record

    @classmethod
    def from_record(cls, record: Mapping) -> "Evaluation":
        """The evaluation that `as_record` wrote.

        :param record: with further entries or without. A number that is not finite may be given by
            its name.
        """
        return cls(
            coefficients=_numbers(record["coefficients"]),
            scores=_numbers_by_task(record["examples"]),
            seconds=record["seconds"],
            failure=record.get("failure"),
            margins=_numbers_by_task(record.get("margins", {})),
            cost=cost_of(record),
            estimate=record.get("estimate"),
            gradient=_numbers(record.get("gradient", ())),
            places={name: tuple(places) for name, places in record.get("places", {}).items()},
        )


def cost_of(record: Mapping) -> float:
    """The cost of a recorded evaluation, see `Evaluation`. Earlier versions had another name."""
    return record.get("cost", record.get("fraction_evaluated", 1.0))


def _numbers(values) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _numbers_by_task(values_by_task: Mapping) -> dict[str, tuple[float, ...]]:
    return {name: _numbers(values) for name, values in values_by_task.items()}
