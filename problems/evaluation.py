"""One evaluation of one merge: the unit of the budget, and of the records that a run keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True)
class Evaluation:
    """A merge and its scores.

    :param coefficients: the n effective coefficients.
    :param scores: by task a number per example, higher is better. A failed evaluation has none. A
        pruned merge has those of the examples that were evaluated.
    :param seconds: its part of the time that the merges scored together took; 0 where the result
        was known.
    :param failure: why there are no scores, or None.
    :param margins: like `scores`, by how much each example is right; only where the objectives are
        outcomes.
    :param fraction_evaluated: of all examples; below 1 for a pruned merge.
    :param estimate: of a pruned merge's score, or None.
    """

    coefficients: tuple[float, ...]
    scores: dict[str, tuple[float, ...]]
    seconds: float
    failure: str | None = None
    margins: dict[str, tuple[float, ...]] = field(default_factory=dict)
    fraction_evaluated: float = 1.0
    estimate: float | None = None

    @cached_property
    def by_task(self) -> dict[str, float]:
        """The mean score of each task; empty if the evaluation failed."""
        means = {}
        for name, values in self.scores.items():
            means[name] = float(torch.tensor(values, dtype=torch.float32, device="cpu").mean())
        return means

    @property
    def score(self) -> float:
        """The mean over tasks, or the estimate of a pruned merge; -inf if the evaluation failed."""
        if self.estimate is not None:
            return self.estimate
        if not self.by_task:
            return float("-inf")
        return sum(self.by_task.values()) / len(self.by_task)

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
        if self.estimate is not None:
            record["fraction_evaluated"] = self.fraction_evaluated
            record["estimate"] = self.estimate
        return record

    @classmethod
    def from_record(cls, record: Mapping) -> "Evaluation":
        """The evaluation that `as_record` wrote.

        :param record: with further entries or without. A number that is not finite may be given by
            its name.
        """
        pruned = {}
        if "estimate" in record:
            pruned["fraction_evaluated"] = record["fraction_evaluated"]
            pruned["estimate"] = record["estimate"]
        return cls(
            coefficients=_numbers(record["coefficients"]),
            scores=_numbers_by_task(record["examples"]),
            seconds=record["seconds"],
            failure=record.get("failure"),
            margins=_numbers_by_task(record.get("margins", {})),
            **pruned,
        )


def _numbers(values) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _numbers_by_task(values_by_task: Mapping) -> dict[str, tuple[float, ...]]:
    return {name: _numbers(values) for name, values in values_by_task.items()}
