"""Racing: a merge that cannot become the best is given up before all examples have been asked.

Examples are asked in rungs, each with its share of every task. After a rung a merge is compared with the best one known,
example by example, on what both have answered; with a stated confidence that its score is lower, no more is asked of it. The
comparison is paired, because most examples are right or wrong for both; the examples are a finite set, of which the rest is in
doubt. After O. Maron and A. Moore, "Hoeffding Races", NIPS 1993, and the paired races of M. Birattari et al., "A Racing
Algorithm for Configuring Metaheuristics", GECCO 2002.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch

from evox_evogm.problems.tasks.task import Task


@dataclass(frozen=True)
class Racing:
    """When merges are given up.

    :param rungs: shares of each task's examples after which a merge is compared, rising, between 0 and 1.
    :param confidence: one-sided, by the normal distribution, of each comparison, in [0.5, 1).
    :raises ValueError: if one is out of range.
    """

    rungs: tuple[float, ...] = (0.25, 0.5)
    confidence: float = 0.9

    def __post_init__(self):
        edges = [0.0, *self.rungs, 1.0]
        if not all(low < high for low, high in zip(edges, edges[1:], strict=False)):
            raise ValueError(f"rungs: expected rising shares between 0 and 1, found {self.rungs}")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence: expected a number in [0.5, 1), found {self.confidence}")


def rung_ends(count: int, rungs: Sequence[float]) -> list[int]:
    """How many of a task's `count` examples have been asked after each rung; the last has all, the first at least one."""
    return [max(1, round(share * count)) for share in rungs] + [count]


def in_random_order(task: Task) -> Task:
    """The same examples in an order that is always the same: files may be sorted, and a rung should be like the rest."""
    examples = list(task.examples)
    random.Random(task.name).shuffle(examples)
    return replace(task, examples=tuple(examples))


def tasks_of_rungs(tasks: Sequence[Task], rungs: Sequence[float]) -> list[list[Task]]:
    """Per rung the tasks with the examples that it asks, without those that have none to ask."""
    ends = [[0, *rung_ends(len(task.examples), rungs)] for task in tasks]
    return [
        [
            replace(task, examples=task.examples[end[rung] : end[rung + 1]])
            for task, end in zip(tasks, ends, strict=True)
            if end[rung + 1] > end[rung]
        ]
        for rung in range(len(rungs) + 1)
    ]


def compare(
    scores: Mapping[str, Sequence[float]], best: Mapping[str, Sequence[float]], confidence: float
) -> tuple[float, bool]:
    """By how much a merge that has answered some examples is better than one that has answered all, and whether to give it up.

    :param scores: per task the scores of its first examples, at least one.
    :param best: per task the scores of all examples.
    :param confidence: that a merge which is given up has the lower mean over tasks.
    :return: the mean over tasks of the mean differences (negative: worse), and whether the mean difference over all
        examples is below 0 with that confidence.
    """
    differences = {
        name: torch.tensor(best[name][: len(mine)]).double() for name, mine in scores.items()
    }
    differences = {
        name: torch.tensor(scores[name]).double() - theirs for name, theirs in differences.items()
    }
    mean = torch.stack([values.mean() for values in differences.values()]).mean()
    away = torch.cat([values - mean for values in differences.values()])
    weights = torch.cat(
        [torch.full_like(v, 1 / (len(differences) * len(v))) for v in differences.values()]
    )
    asked = len(away) / sum(len(best[name]) for name in scores)
    # An imagined example that both answer alike: a few that all differ alike are no certainty.
    squares = weights.square() @ away.square() + weights.square().mean() * mean.square()
    # Of a sample without replacement: what has been asked is known.
    variance = squares * len(away) / max(1, len(away) - 1) * (1 - asked)
    return float(mean), bool(mean + NormalDist().inv_cdf(confidence) * variance.sqrt() < 0)
