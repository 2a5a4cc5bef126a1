"""Scores of a population by one process that leads and others that help it.

The leader runs a search as if it were alone. Helpers have the same problem, and wait for work.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from evox_evogm.problems.inference.batch_sizes import BatchSizes
from evox_evogm.problems.portions import PORTIONS
from evox_evogm.problems.rank_group import RankGroup
from evox_evogm.problems.shared_scoring import Plan, SharedScoring, join, take_portions
from evox_evogm.problems.task_scores import TaskScores
from evox_evogm.problems.tasks.task import Task

if TYPE_CHECKING:
    from evox_evogm.problems.lora_merge import LoRAMergeProblem
    from evox_evogm.problems.population_scorer import PopulationScorer

Value = TypeVar("Value")


class Part(NamedTuple):
    """Some examples of a task that all ranks have.

    :param place: of the task among those of the problem and its other tasks.
    :param examples: their places in the task.
    """

    place: int
    examples: tuple[int, ...]


class Work(NamedTuple):
    """What the leader has helpers do.

    :param pop: a `(P, n g)` tensor on the CPU.
    :param parts: what is scored.
    :param plan: the modes and the portions.
    :param batch_sizes: of passes over texts, or None.
    :param differentiate: whether margins are differentiated too.
    """

    pop: torch.Tensor
    parts: Sequence[Part]
    plan: Plan
    batch_sizes: BatchSizes | None
    differentiate: bool


class LedScoring(SharedScoring):
    """Scores with helpers what they have too, and all else alone.

    :param problem: of the leader.
    :param ranks: of which the leader is rank 0.
    :param portions: that the work is cut into, at least and if they are not too small.
    """

    def __init__(self, problem: "LoRAMergeProblem", ranks: RankGroup, portions: int = PORTIONS):
        super().__init__(ranks, portions)
        self.scorer = problem.scorer
        self.tasks = [*problem.tasks, *problem.other_tasks]

    def agree(self, make: Callable[[], Value]) -> Value:
        """What the leader finds holds for all: it goes to them with the work."""
        return make()

    def score(
        self,
        scorer: "PopulationScorer",
        pop: torch.Tensor,
        tasks: Sequence[Task],
        *,
        differentiate: bool = False,
    ) -> TaskScores:
        """Score merges by task and example, see `SharedScoring.score`."""
        parts = [self.part_of(task) for task in tasks]
        shared = [part for part in parts if part is not None]
        if scorer is not self.scorer or len(shared) < len(tasks):
            if differentiate:
                return scorer.differentiate_here(pop, tasks)
            return scorer.score_here(pop, tasks, scorer.modes_for(tasks, len(pop)))
        plan = self._plan(scorer, len(pop), tasks, differentiate)
        sizes = getattr(scorer.language_model, "batch_sizes", None)
        work = Work(pop.detach().cpu(), shared, plan, sizes, differentiate)
        self.ranks.exchange(work)
        scored = take_portions(self.ranks, scorer, work.pop, tasks, plan, differentiate)
        return join(scored, plan.portions, tasks, scorer.n_coefficients, len(pop))

    def part_of(self, task: Task) -> Part | None:
        """What a task is for the helpers, or None if they do not have it."""
        for place, known in enumerate(self.tasks):
            if known.name != task.name:
                continue
            places = {example: number for number, example in enumerate(known.examples)}
            if not all(example in places for example in task.examples):
                continue
            part = Part(place, tuple(places[example] for example in task.examples))
            # Examples may be equal in dev and test: those of functions and images.
            if with_examples(known, part.examples) == task:
                return part
        return None

    def end(self) -> None:
        """Let the helpers go."""
        self.ranks.exchange(None)


def help_to_score(problem: "LoRAMergeProblem", ranks: RankGroup) -> None:
    """Do what the leader wants, until it ends.

    :param problem: made as that of the leader.
    :raises RankLost: if a rank is gone.
    """
    tasks = [*problem.tasks, *problem.other_tasks]
    scorer = problem.scorer
    batch_sizes = None
    while (work := ranks.exchange(None)[0]) is not None:
        some = [with_examples(tasks[part.place], part.examples) for part in work.parts]
        scorer.take_modes(work.plan.modes)
        if work.batch_sizes is not None and work.batch_sizes != batch_sizes:
            # Only new ones, as those of before may have been halved here when memory ran out.
            scorer.language_model.batch_sizes = batch_sizes = work.batch_sizes
        take_portions(ranks, scorer, work.pop, some, work.plan, work.differentiate)


def with_examples(task: Task, places: Iterable[int]) -> Task:
    """A task with the examples at some places."""
    examples = tuple(task.examples[place] for place in places)
    return task if examples == task.examples else replace(task, examples=examples)
