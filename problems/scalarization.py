"""How the scores of several tasks become the one score of a merge.

- `"mean"`: their weighted mean.
- `"worst"`: the least of them.
- `"harmonic"`: their weighted harmonic mean, in which a low score counts more; 0 if one is 0.

Constraints order merges as K. Deb, "An efficient constraint handling method for genetic algorithms"
(Computer Methods in Applied Mechanics and Engineering 186, 2000) does: a merge that keeps them all
is better than any that does not, and of two that do not the one is better that breaks them less.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.margins import counts_by_sign
from evox_evogm.problems.tasks.task import Task

Kind = Literal["mean", "worst", "harmonic"]
KINDS = ("mean", "worst", "harmonic")
REFERENCES = ("base", "best_expert", "average")
TOLERANCE = 1e-6  # of a constraint, times its least score where that is above 1: for rounding
Scores = Mapping[str, float]  # mean scores by task


@dataclass(frozen=True)
class Constraint:
    """The least score of a task that a merge has to have.

    :param task: the name of the task.
    :param against: the model that it is compared with: `"base"`, `"best_expert"` (the expert that
        is best in this task) or `"average"` (of the experts).
    :param lose: how much less than that model it may have.
    :param least: the least score itself. With `against` it follows from the scores of that model.
    :raises ValueError: if one is out of range, or neither `against` nor `least` is given.
    """

    task: str
    against: str | None = None
    lose: float = 0.0
    least: float | None = None

    def __post_init__(self):
        where = f"constraint on task {self.task!r}"
        if self.against is None and self.least is None:
            raise ValueError(f"{where}: expected against or least, found neither")
        if self.against is not None and self.against not in REFERENCES:
            expected = f"expected against to be one of {', '.join(REFERENCES)}"
            raise ValueError(f"{where}: {expected}, found {self.against!r}")
        if not is_number(self.lose) or not 0 <= self.lose < math.inf:
            expected = "expected lose to be a number of at least 0"
            raise ValueError(f"{where}: {expected}, found {self.lose!r}")
        if self.least is not None and not (is_number(self.least) and math.isfinite(self.least)):
            raise ValueError(f"{where}: expected least to be a number, found {self.least!r}")

    def resolve(self, references: Mapping[str, Sequence[Scores]]) -> "Constraint":
        """The same constraint with its least score.

        :param references: by the name in `REFERENCES` the scores of one model, of `"best_expert"`
            those of all experts.
        """
        if self.least is not None or self.against is None:
            return self
        known = [scores[self.task] for scores in references[self.against]]
        finite = [score for score in known if math.isfinite(score)]
        if not finite:
            expected = f"expected a score of {self.against} to compare with"
            raise RuntimeError(f"constraint on task {self.task!r}: {expected}, found none")
        return replace(self, least=max(finite) - self.lose)

    def violation(self, scores: Scores) -> float:
        """By how much a merge has less than the least score; 0 if it has not, but for rounding."""
        assert self.least is not None, "constraints are resolved before merges are scored"
        lacking = self.least - scores[self.task]
        return lacking if lacking > TOLERANCE * max(1.0, abs(self.least)) else 0.0


@dataclass(frozen=True)
class Objective:
    """What a search makes large.

    :param kind: `"mean"`, `"worst"` or `"harmonic"`.
    :param weights: of tasks by name; those without one weigh 1. Not with `"worst"`.
    :param constraints: at most one for each task.
    :param floor: what merges that break a constraint stay below, see `for_tasks`.
    :raises ValueError: if one of them cannot be used.
    """

    kind: Kind = "mean"
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    constraints: tuple[Constraint, ...] = ()
    floor: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            near = difflib.get_close_matches(str(self.kind), KINDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            expected = f"expected one of {', '.join(KINDS)}"
            raise ValueError(f"objective: {expected}, found {self.kind!r}{hint}")
        for name, weight in self.weights.items():
            if not is_number(weight) or not 0 < weight < math.inf:
                expected = f"expected the weight of task {name!r} to be a number above 0"
                raise ValueError(f"objective: {expected}, found {weight!r}")
        if self.kind == "worst" and self.is_weighted:
            raise ValueError(
                "objective: expected no weights with worst, which is the least score, found "
                f"{dict(self.weights)}"
            )

    @property
    def is_weighted(self) -> bool:
        """Whether two tasks differ in their weights."""
        return any(weight != 1 for weight in self.weights.values())

    @property
    def is_weighted_mean(self) -> bool:
        """Whether the score is a weighted mean over all examples: outcomes and gradients add up."""
        return self.kind == "mean" and not self.constraints

    @property
    def is_plain_mean(self) -> bool:
        """Whether all tasks count the same, and nothing else."""
        return self.is_weighted_mean and not self.is_weighted

    @property
    def is_resolved(self) -> bool:
        """Whether every constraint has its least score."""
        return all(constraint.least is not None for constraint in self.constraints)

    def resolve(self, references: Mapping[str, Sequence[Scores]]) -> "Objective":
        """The same objective, in which every constraint has its least score.

        :param references: as of `Constraint.resolve`.
        """
        resolved = tuple(constraint.resolve(references) for constraint in self.constraints)
        return replace(self, constraints=resolved)

    def for_tasks(self, tasks: Sequence[Task]) -> "Objective":
        """The objective of these tasks.

        Merges that break a constraint stay below 0 where all scores are between 0 and 1. Otherwise
        they stay below -1, and negative scores of merges that keep them are squeezed between -1
        and 0, where they keep their order.

        :raises ValueError: if a weight or a constraint is that of no task, or a score cannot be
            averaged so.
        """
        names = [task.name for task in tasks]
        check_names("weight", list(self.weights), names)
        check_names("constraint", [found.task for found in self.constraints], names)
        if self.kind == "harmonic":
            for task in tasks:
                if may_be_negative(task):
                    expected = "expected scores of at least 0 with harmonic"
                    found = f"found the metric {task.metric} of task {task.name!r}"
                    raise ValueError(f"objective: {expected}, {found}")
        stays_positive = not self.constraints or all(map(between_0_and_1, tasks))
        return replace(self, floor=0.0 if stays_positive else -1.0)

    def weight(self, task: str) -> float:
        """Of a task."""
        return self.weights.get(task, 1.0)

    def shares(self, tasks: Sequence[Task]) -> list[float]:
        """The share of each task in the weighted mean; together 1."""
        total = sum(self.weight(task.name) for task in tasks)
        return [self.weight(task.name) / total for task in tasks]

    def value(self, scores: Scores) -> float:
        """The mean, the worst or the harmonic mean of scores, whether constraints are kept or not.

        :param scores: of all tasks, at least one.
        """
        if self.kind == "worst":
            return min(scores.values())
        if not self.is_weighted:
            total, weighted = float(len(scores)), list(scores.values())
        else:
            total = sum(self.weight(name) for name in scores)
            weighted = [self.weight(name) * score for name, score in scores.items()]
        if self.kind == "mean":
            return sum(weighted) / total
        if min(scores.values()) <= 0:
            return 0.0
        return total / sum(self.weight(name) / score for name, score in scores.items())

    def failed(self, tasks: Sequence[Task]) -> float:
        """A finite score below those of all merges that did not fail.

        :param tasks: `FAR_BELOW` with one whose scores have no known least.
        """
        leasts = {task.name: least_score(task) for task in tasks}
        if None in leasts.values():
            return FAR_BELOW
        known = {name: least for name, least in leasts.items() if least is not None}
        return min(*known.values(), self.floor) - self.violation(known) - 1

    def violation(self, scores: Scores) -> float:
        """The sum over constraints of what a merge lacks; 0 if it keeps them all."""
        return sum(constraint.violation(scores) for constraint in self.constraints)

    def score(self, scores: Scores) -> float:
        """What a search makes large: the value, or how much a merge lacks, below the floor."""
        return self.penalize(self.value(scores), scores)

    def penalize(self, value: float, scores: Scores) -> float:
        """A number that the merge is better the larger it is, ordered by Deb's rules.

        :param value: what it would be without constraints.
        :param scores: of all tasks.
        """
        if not self.constraints:
            return value
        lacking = self.violation(scores)
        if lacking > 0:
            return self.floor - lacking
        return value if self.floor == 0 or value >= 0 else value / (1 - value)


MEAN = Objective()
NEGATIVE = ("gold_log_probability", "abstain_qa")
FAR_BELOW = -1e6  # what algorithms for several objectives still compute with in float32


def may_be_negative(task: Task) -> bool:
    """Whether scores of a task are below 0 by its metric."""
    if isinstance(task, CustomTask):
        return task.may_be_negative
    return task.metric in NEGATIVE


def between_0_and_1(task: Task) -> bool:
    """Whether all scores of a task are between 0 and 1, as far as it is known."""
    return counts_by_sign(task)


def least_score(task: Task) -> float | None:
    """What no score of a task is below, or None if that is not known."""
    if between_0_and_1(task):
        return 0.0
    return -1.0 if task.metric == "abstain_qa" else None


def is_number(value) -> bool:
    """Whether a value is a number, and not true or false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_names(what: str, found: Sequence[str], names: Sequence[str]) -> None:
    """Refuse the name of no task, and say which is nearest.

    :param what: what was given a name.
    :raises ValueError: in one sentence.
    """
    for name in found:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            expected = f"expected a {what} of one of the tasks {', '.join(names)}"
            raise ValueError(f"objective: {expected}, found {name!r}{hint}")
    if len(set(found)) < len(found):
        raise ValueError(f"objective: expected one {what} for a task, found {list(found)}")


def objective_of(objective: "Objective | str") -> Objective:
    """The objective itself, or the one of this name."""
    if isinstance(objective, Objective):
        return objective
    return Objective(objective)  # type: ignore[arg-type]  # it checks the name
