"""What one evaluation of one merge yields: the unit of the budget, and of what a run writes down."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch


@dataclass(frozen=True)
class Evaluation:
    """A merge and its scores.

    `coefficients` are the n effective ones; `scores` hold per task a number per example, higher is better; `seconds` is its
    share of the time, 0 where the result was known. An evaluation that failed has no scores, but a reason in `failure`.
    `margins` are like `scores`, of problems whose objectives are outcomes. A merge that was given up has the scores of the
    examples that it was asked, the `share` of all, and an `estimate` of its score.
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
        return {
            name: float(torch.tensor(values, device="cpu").mean())
            for name, values in self.scores.items()
        }

    def as_record(self) -> dict:
        """What is written down: numbers, lists and texts."""
        failure = {"failure": self.failure} if self.failure else {}
        margins = (
            {"margins": {name: list(values) for name, values in self.margins.items()}}
            if self.margins
            else {}
        )
        return {
            "score": self.score if self.by_task else None,
            "tasks": self.by_task,
            "coefficients": list(self.coefficients),
            "examples": {name: list(values) for name, values in self.scores.items()},
            "seconds": round(self.seconds, 3),
            **failure,
            **margins,
            **(
                {"fraction_evaluated": self.fraction_evaluated, "estimate": self.estimate}
                if self.estimate is not None
                else {}
            ),
        }

    @classmethod
    def from_record(cls, record: Mapping) -> "Evaluation":
        """What `as_record` has written down; entries that others have added do not matter."""
        # What is not finite may have been written by its name.
        scores = {name: tuple(map(float, values)) for name, values in record["examples"].items()}
        margins = {
            name: tuple(map(float, values)) for name, values in record.get("margins", {}).items()
        }
        given_up = (
            {"fraction_evaluated": record["fraction_evaluated"], "estimate": record["estimate"]}
            if "estimate" in record
            else {}
        )
        point = tuple(map(float, record["coefficients"]))
        return cls(point, scores, record["seconds"], record.get("failure"), margins, **given_up)

    @property
    def score(self) -> float:
        """The mean over tasks, or an estimate of it; -inf if the evaluation failed: nothing is worse."""
        if self.estimate is not None:
            return self.estimate
        return sum(self.by_task.values()) / len(self.by_task) if self.by_task else float("-inf")
