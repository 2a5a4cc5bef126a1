"""Minibatches of dev examples: an evaluation with its gradient takes one in place of all examples.

A gradient on a part of the examples costs a part, so a search makes more steps for the same budget.
Examples are reshuffled in every epoch, and each is in one minibatch of it (L. Bottou, F. E. Curtis
and J. Nocedal, "Optimization Methods for Large-Scale Machine Learning", SIAM Review 60, 2018).
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from evox_evogm.problems.evaluation import GRADIENT_COST
from evox_evogm.problems.tasks.task import Task

STEPS = 50  # that a search should make; with more it gains little (benchmarks/results/gradients.md)
LEAST_EXAMPLES = 24  # of all tasks in a minibatch
LEAST_OF_TASK = 2  # of a task in a minibatch, in the mean over tasks


class Minibatch(NamedTuple):
    """A part of the examples of every task."""

    tasks: Sequence[Task]
    """With these examples."""
    places: Mapping[str, Sequence[int]]
    """By task, where its examples are among all; empty if they are all."""
    share: float
    """The part of all examples, in the mean over an epoch."""


class Minibatches:
    """The minibatches of all epochs, the same in every process.

    :param tasks: with all their examples, of which each has at least `count`.
    :param count: minibatches an epoch; with 1 all examples are in it, in their order.
    """

    def __init__(self, tasks: Sequence[Task], count: int):
        self.tasks = tasks
        self.count = count

    def at(self, number: int) -> Minibatch:
        """One minibatch.

        :param number: from 0, over all epochs.
        """
        if self.count == 1:
            return Minibatch(self.tasks, {}, 1.0)
        epoch, part = divmod(number, self.count)
        tasks, places = [], {}
        for index, task in enumerate(self.tasks):
            order = list(range(len(task.examples)))
            random.Random(f"{task.name} {epoch}").shuffle(order)
            # Parts differ by one example at most. The larger ones are not the same for all tasks.
            first = (part + index) % self.count
            chosen = tuple(sorted(order[first :: self.count]))
            places[task.name] = chosen
            examples = tuple(task.examples[place] for place in chosen)
            tasks.append(replace(task, examples=examples))
        return Minibatch(tasks, places, 1 / self.count)


def minibatches_for(budget: int | None, examples: Sequence[int], pop_size: int = 1) -> int:
    """How many minibatches let a search make `STEPS` steps, as far as tasks have the examples.

    :param budget: full evaluations; None if it is not known, which leaves the examples whole.
    :param examples: the number of dev examples of each task.
    :param pop_size: P, evaluations per step.
    :return: at least 1, which means all examples in every evaluation.
    """
    if budget is None:
        return 1
    wanted = math.ceil(STEPS * pop_size * GRADIENT_COST / budget)
    least = max(LEAST_EXAMPLES, LEAST_OF_TASK * len(examples))
    return max(1, min(wanted, min(examples), sum(examples) // least))
