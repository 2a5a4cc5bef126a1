"""Racing: a merge that cannot become the best is pruned before all examples have been evaluated.

The examples are evaluated in rungs, each of which holds a part of every task. After a rung a merge
is compared with the best one so far, example by example, on the examples that both have. It is
pruned if its score is lower with a stated confidence.

- The comparison is paired, because most examples are right or wrong for both merges.
- The examples are a finite set, of which only those not yet evaluated are uncertain.

After O. Maron and A. Moore, "Hoeffding Races", NIPS 1993, and the paired races of M. Birattari et
al., "A Racing Algorithm for Configuring Metaheuristics", GECCO 2002.
"""

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from types import MappingProxyType

import torch

from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.tasks.task import Task


@dataclass(frozen=True)
class Racing:
    """When merges are pruned.

    :param rungs: the fractions of each task's examples after which merges are compared, rising,
        between 0 and 1.
    :param confidence: of each comparison, one-sided, by the normal distribution, in [0.5, 1).
    :raises ValueError: if one is out of range.
    """

    rungs: tuple[float, ...] = (0.25, 0.5)
    confidence: float = 0.9

    def __post_init__(self):
        edges = [0.0, *self.rungs, 1.0]
        rising = all(low < high for low, high in zip(edges, edges[1:], strict=False))
        if not rising:
            raise ValueError(
                f"rungs: expected rising fractions between 0 and 1, found {self.rungs}"
            )
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence: expected a number in [0.5, 1), found {self.confidence}")


class Racer:
    """One merge of a race, and what it has reached so far.

    :param coefficients: the n g effective coefficients.
    """

    def __init__(self, coefficients: Sequence[float]):
        self.coefficients = tuple(coefficients)
        self.scores: dict[str, list[float]] = {}
        self.margins: dict[str, list[float]] = {}
        self.estimate: float | None = None
        self.failure: str | None = None

    @property
    def evaluated(self) -> int:
        """How many examples are evaluated."""
        return sum(len(scores) for scores in self.scores.values())

    def add(self, task: str, scores: torch.Tensor, margins: torch.Tensor) -> None:
        """Note the scores and margins of some examples of a task, two `(S,)` tensors."""
        self.scores.setdefault(task, []).extend(scores.tolist())
        self.margins.setdefault(task, []).extend(margins.tolist())

    def failed_task(self) -> str | None:
        """The first task with a score that is not finite, or with a margin that is NaN.

        NaN logits may score as a right answer, but their margin is NaN.
        """
        for name, scores in self.scores.items():
            finite = all(math.isfinite(score) for score in scores)
            if not finite or any(math.isnan(margin) for margin in self.margins[name]):
                return name
        return None

    def evaluation(self, seconds: float, examples: int, *, keep_margins: bool) -> Evaluation:
        """The evaluation of the merge, which has failed if it has no finite scores.

        :param seconds: that it took.
        :param examples: the number of all examples.
        :param keep_margins: whether the evaluation holds the margins.
        """
        failed_task = self.failed_task()
        if self.failure is not None or failed_task is not None:
            failure = self.failure or f"task {failed_task}: expected finite scores, found others"
            return Evaluation(self.coefficients, {}, seconds, failure)
        return Evaluation(
            coefficients=self.coefficients,
            scores=_tuples(self.scores),
            seconds=seconds,
            margins=_tuples(self.margins) if keep_margins else {},
            cost=self.evaluated / examples,
            estimate=self.estimate,
        )


class Race:
    """P merges that go from rung to rung.

    Without racing, or without a best merge, there is one rung with all examples.

    :param pop: a `(P, n g)` tensor of effective coefficients.
    :param tasks: with all their examples.
    :param racing: when merges are pruned, or None.
    :param best: the best complete evaluation so far, or None.
    """

    def __init__(
        self,
        pop: torch.Tensor,
        tasks: Sequence[Task],
        racing: Racing | None = None,
        best: Evaluation | None = None,
    ):
        self.racing = racing
        self.best = best if racing is not None else None
        self.rungs: Sequence[Sequence[Task]] = [tasks]
        if racing is not None and best is not None:
            self.rungs = tasks_of_rungs(tasks, racing.rungs)
        self.running = list(range(len(pop)))  # the rows that are not pruned
        self._racers = [Racer(coefficients) for coefficients in pop.tolist()]
        self._examples = sum(len(task.examples) for task in tasks)
        self._start = time.perf_counter()

    def add(
        self,
        scores: Mapping[str, torch.Tensor],
        margins: Mapping[str, torch.Tensor],
        failures: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Note what the running merges reached on the examples of a rung.

        :param scores: by task an `(R, S)` tensor, R the number of running merges.
        :param margins: the same for margins.
        :param failures: by place among the running merges, why a merge has no scores.
        """
        for place, row in enumerate(self.running):
            self._racers[row].failure = failures.get(place)
            for task in scores:
                self._racers[row].add(task, scores[task][place], margins[task][place])

    def prune(self) -> None:
        """Drop the running merges that are worse than the best one.

        Merges of which all examples are evaluated stay.
        """
        if self.best is None:
            return
        still_running = []
        for row in self.running:
            racer = self._racers[row]
            if racer.evaluated < self._examples:
                racer.estimate = self._estimate_if_worse(racer)
            if racer.estimate is None:
                still_running.append(row)
        self.running = still_running

    def evaluations(self, *, keep_margins: bool) -> list[Evaluation]:
        """The evaluation of every merge, in the order of the population.

        :param keep_margins: whether the evaluations hold the margins.
        """
        seconds = (time.perf_counter() - self._start) / len(self._racers)
        evaluations = []
        for racer in self._racers:
            evaluation = racer.evaluation(seconds, self._examples, keep_margins=keep_margins)
            evaluations.append(evaluation)
        return evaluations

    def _estimate_if_worse(self, racer: Racer) -> float | None:
        """An estimate of the score of a merge that is worse than the best one, else None."""
        assert self.best is not None and self.racing is not None, "only a race prunes"
        difference, worse = compare(racer.scores, self.best.scores, self.racing.confidence)
        return self.best.score + difference if worse else None


def _tuples(values_by_task: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values) for name, values in values_by_task.items()}


def rung_ends(count: int, rungs: Sequence[float]) -> list[int]:
    """How many of a task's `count` examples are evaluated by the end of each rung.

    :return: per rung a number; at least 1 for the first, and `count` for the last.
    """
    ends = [max(1, round(fraction * count)) for fraction in rungs]
    return [*ends, count]


def in_random_order(task: Task) -> Task:
    """The same examples in a random order that is always the same.

    Files may be sorted, and the examples of a rung should be like the rest.
    """
    examples = list(task.examples)
    random.Random(task.name).shuffle(examples)
    return replace(task, examples=tuple(examples))


def tasks_of_rungs(tasks: Sequence[Task], rungs: Sequence[float]) -> list[list[Task]]:
    """The tasks of each rung, with the examples that it evaluates.

    :param tasks: with all their examples.
    :param rungs: see `Racing`.
    :return: per rung its tasks. Tasks and rungs without examples are left out.
    """
    by_rung: list[list[Task]] = [[] for _ in range(len(rungs) + 1)]
    for task in tasks:
        start = 0
        for rung, end in enumerate(rung_ends(len(task.examples), rungs)):
            if end > start:
                by_rung[rung].append(replace(task, examples=task.examples[start:end]))
            start = end
    return [tasks_of_rung for tasks_of_rung in by_rung if tasks_of_rung]


def compare(
    scores: Mapping[str, Sequence[float]], best: Mapping[str, Sequence[float]], confidence: float
) -> tuple[float, bool]:
    """Compare a merge of which some examples are evaluated with one of which all are.

    :param scores: per task the scores of its first examples, at least one.
    :param best: per task the scores of all examples.
    :param confidence: that the mean over tasks is lower, for a merge to be pruned.
    :return: the mean over tasks of the mean differences (negative: worse), and whether the mean
        difference over all examples is below 0 with that confidence.
    """
    differences = []  # per task (S,)
    for name, mine in scores.items():
        theirs = torch.tensor(best[name][: len(mine)], device="cpu").double()
        differences.append(torch.tensor(mine, device="cpu").double() - theirs)
    mean = torch.stack([values.mean() for values in differences]).mean()
    examples = sum(len(best[name]) for name in scores)
    deviation = standard_error(differences, mean, examples)
    return float(mean), bool(mean + NormalDist().inv_cdf(confidence) * deviation < 0)


def standard_error(
    differences: Sequence[torch.Tensor], mean: torch.Tensor, examples: int
) -> torch.Tensor:
    """The standard error of a mean over tasks of mean differences.

    :param differences: per task an `(S,)` tensor, of the examples that are evaluated.
    :param mean: the mean over tasks, a scalar tensor.
    :param examples: how many there are, evaluated or not.
    :return: a scalar tensor.
    """
    by_task = []
    for values in differences:
        by_task.append(torch.full_like(values, 1 / (len(differences) * len(values))))
    weights = torch.cat(by_task)  # of each example in the mean
    away = torch.cat(list(differences)) - mean
    count = len(away)
    # One more example is imagined, whose difference is 0: a few that all differ by the same amount
    # are no certainty.
    squares = weights.square() @ away.square() + weights.square().mean() * mean.square()
    # Of a sample without replacement: the examples that are evaluated are certain.
    variance = squares * count / max(1, count - 1) * (1 - count / examples)
    return variance.sqrt()
