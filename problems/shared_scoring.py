"""Scores of a population by several ranks, each of which takes portions while any are left."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from evox_evogm.problems.failures import SharedFailure
from evox_evogm.problems.portions import PORTIONS, Portion, cut_work
from evox_evogm.problems.rank_group import RankGroup
from evox_evogm.problems.retries import attempt_in_smaller_batches
from evox_evogm.problems.task_scores import TaskScores, zeros_by_task
from evox_evogm.problems.tasks.task import Task

if TYPE_CHECKING:
    from evox_evogm.problems.population_scorer import PopulationScorer

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class Plan(NamedTuple):
    """What rank 0 decides for all ranks.

    :param modes: of the tasks, by name.
    :param portions: of the work.
    """

    modes: Mapping[str, str]
    portions: Sequence[Portion]


class Scored(NamedTuple):
    """What a rank sends of a portion.

    :param found: scores of its candidates on its examples, or None after an error.
    :param error: the error, or None.
    :param invalid: whether it says that the input cannot be used, whatever the merge.
    """

    found: TaskScores | None
    error: str | None = None
    invalid: bool = False


class SharedScoring:
    """Has ranks score populations together. Every rank calls the same, and gets all scores.

    :param ranks: that share the work.
    :param portions: that the work is cut into, at least and if they are not too small.
    """

    def __init__(self, ranks: RankGroup, portions: int = PORTIONS):
        self.ranks = ranks
        self.portions = portions

    def agree(self, make: Callable[[], Value]) -> Value:
        """What a function returns on rank 0, on all ranks."""
        return self.ranks.from_rank_0(make)

    def score(
        self,
        scorer: "PopulationScorer",
        pop: torch.Tensor,
        tasks: Sequence[Task],
        *,
        differentiate: bool = False,
    ) -> TaskScores:
        """Score merges by task and example, as `PopulationScorer.score` does.

        :param scorer: of this rank.
        :param pop: a `(P, n g)` tensor of effective coefficients.
        :param differentiate: whether margins are differentiated too.
        :raises RankLost: if a rank is gone.
        :raises ValueError: if the input cannot be used, as a rank found out.
        :raises SharedFailure: if a portion ended in another error.
        """
        plan = self.agree(lambda: self._plan(scorer, len(pop), tasks, differentiate))
        scored = take_portions(self.ranks, scorer, pop, tasks, plan, differentiate)
        return join(scored, plan.portions, tasks, scorer.n_coefficients, len(pop))

    def _plan(
        self, scorer: "PopulationScorer", candidates: int, tasks: Sequence[Task], unmerged: bool
    ) -> Plan:
        if unmerged:
            modes = dict.fromkeys([task.name for task in tasks], "unmerged")
        else:
            modes = scorer.modes_for(tasks, candidates)
        cut = cut_work(tasks, candidates, scorer.language_model, modes, self.portions)
        return Plan(modes, cut)


def take_portions(
    ranks: RankGroup,
    scorer: "PopulationScorer",
    pop: torch.Tensor,
    tasks: Sequence[Task],
    plan: Plan,
    differentiate: bool,
) -> dict[int, Scored]:
    """Take portions while any are left.

    :return: what all ranks have scored, by number of the portion.
    :raises RankLost: if a rank is gone.
    """
    mine: dict[int, Scored] = {}
    for number in ranks.draw(len(plan.portions)):
        portion = plan.portions[number]
        mine[number] = score_portion(scorer, pop, tasks, portion, plan.modes, differentiate)
    replies = ranks.exchange(mine)
    counts = [len(reply) for reply in replies]
    log.debug("%d portions, by rank %s", len(plan.portions), counts)
    scored: dict[int, Scored] = {}
    for reply in replies:
        scored |= reply
    return scored


def score_portion(
    scorer: "PopulationScorer",
    pop: torch.Tensor,
    tasks: Sequence[Task],
    portion: Portion,
    modes: Mapping[str, str],
    differentiate: bool,
) -> Scored:
    """Score a portion, in smaller batches where memory runs out."""
    some = [part_of(task, *portion.examples[task.name]) for task in tasks_of(tasks, portion)]

    def score(rows: torch.Tensor) -> TaskScores:
        if differentiate:
            return scorer.differentiate_here(rows, some)
        return scorer.score_here(rows, some, modes)

    try:
        outcome = attempt_in_smaller_batches(pop[list(portion.rows)], score, scorer.language_model)
    except ValueError as error:
        return Scored(None, str(error), invalid=True)
    if outcome.evaluations is None:
        return Scored(None, outcome.error)
    found = outcome.evaluations
    return Scored(found._replace(failures=dict(found.failures)))  # which can be pickled


def tasks_of(tasks: Sequence[Task], portion: Portion) -> list[Task]:
    """The tasks of which a portion has examples."""
    return [task for task in tasks if task.name in portion.examples]


def part_of(task: Task, first: int, end: int) -> Task:
    """A task with some of its examples."""
    if end - first == len(task.examples):
        return task
    return replace(task, examples=task.examples[first:end])


def join(
    scored: Mapping[int, Scored],
    portions: Sequence[Portion],
    tasks: Sequence[Task],
    n_coefficients: int,
    candidates: int,
) -> TaskScores:
    """The scores of P candidates, from those of all portions.

    :param scored: by number of the portion.
    :raises ValueError: if the input of a portion cannot be used.
    :raises SharedFailure: if a portion ended in another error.
    """
    scores = zeros_by_task(tasks, candidates)
    margins = zeros_by_task(tasks, candidates)
    derivatives: dict[str, torch.Tensor] = {}
    failures: dict[int, str] = {}
    for number, portion in enumerate(portions):
        found, error, invalid = scored[number]
        if found is None:
            text = str(error)
            raise ValueError(text) if invalid else SharedFailure(text)
        rows = torch.tensor(portion.rows, device="cpu")
        for name, (first, end) in portion.examples.items():
            scores[name][rows, first:end] = found.scores[name]
            margins[name][rows, first:end] = found.margins[name]
            if name in found.derivatives:
                if name not in derivatives:
                    shape = *scores[name].shape, n_coefficients
                    derivatives[name] = torch.zeros(shape, device="cpu")
                derivatives[name][rows, first:end] = found.derivatives[name]
        for place, reason in found.failures.items():
            failures.setdefault(portion.rows[place], reason)
    return TaskScores(scores, margins, derivatives, failures)
