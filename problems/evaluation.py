"""What one evaluation of one merge yields: the unit of the budget, and of what a run writes down."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Evaluation:
    """A merge and its scores.

    `coefficients` are the n effective ones; `scores` hold per task a number per example, higher is better; `seconds` is its
    share of the time, 0 where the result was known. An evaluation that failed has no scores, but a reason in `failure`.
    """

    coefficients: tuple[float, ...]
    scores: dict[str, tuple[float, ...]]
    seconds: float
    failure: str | None = None

    @cached_property
    def by_task(self) -> dict[str, float]:
        """The mean score of each task; empty if the evaluation failed."""
        return {name: float(torch.tensor(values).mean()) for name, values in self.scores.items()}

    def as_record(self) -> dict:
        """What is written down: numbers, lists and texts."""
        failure = {"failure": self.failure} if self.failure else {}
        return {
            "score": self.score if self.by_task else None,
            "tasks": self.by_task,
            "coefficients": list(self.coefficients),
            "examples": {name: list(values) for name, values in self.scores.items()},
            "seconds": round(self.seconds, 3),
            **failure,
        }

    @classmethod
    def from_record(cls, record: Mapping) -> "Evaluation":
        """What `as_record` has written down; entries that others have added do not matter."""
        scores = {name: tuple(values) for name, values in record["examples"].items()}
        return cls(tuple(record["coefficients"]), scores, record["seconds"], record.get("failure"))

    @property
    def score(self) -> float:
        """The mean over tasks, -inf if the evaluation failed: nothing is worse."""
        return sum(self.by_task.values()) / len(self.by_task) if self.by_task else float("-inf")
