"""Notes of a run, a line each: what was found out about its parts, for log, files and report."""

import math
from collections.abc import Sequence

import torch

from evox_evogm.algorithms.blocks import are_coarse
from evox_evogm.command.number_format import short
from evox_evogm.command.scores import ScoreRow, label
from evox_evogm.command.search_algorithm import Search
from evox_evogm.command.sources import note_of_sources
from evox_evogm.command.task_settings import SPLITS
from evox_evogm.command.tasks import RunTasks
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.factor_copies import note_of_copies
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.tasks.task import Task


def notes_of_inputs(problem: LoRAMergeProblem, tasks: RunTasks) -> list[str]:
    """What is known before the first evaluation: of the tasks, and of the base and the experts."""
    lines = [*note_of_sources(problem), *tasks.notes, *problem.notes, *problem.capabilities.notes]
    lines += note_of_copies(problem.scorer)
    return [sanitize(line) for line in lines]


def notes_of_failed_rows(rows: Sequence[ScoreRow]) -> list[str]:
    """A note for every row of the final table that has no scores."""
    notes = []
    for row in rows:
        if row.failure is not None:
            shown = label(row.kind, row.name)
            notes.append(f"{shown}: could not be scored: {sanitize(row.failure)}")
    return notes


def notes_of_level_rows(rows: Sequence[ScoreRow], tasks: Sequence[Task]) -> list[str]:
    """A note for every task in which all rows of the final table show the same score.

    :param rows: of the final table. Those without scores do not count.
    :param tasks: those that are looked at, in either split.
    """
    notes = []
    for task in tasks:
        level = []
        for split in SPLITS:
            shown = [short(score) for score in scores_of_task(rows, split, task.name)]
            if len(shown) > 1 and len(set(shown)) == 1:
                level.append(f"{shown[0]} on {split}")
        if level:
            alike = f"base, experts and merge all score {' and '.join(level)} in the table"
            notes.append(f"task {sanitize(task.name)!r}: {alike}, which tells none from another")
    return notes


def scores_of_task(rows: Sequence[ScoreRow], split: str, task: str) -> list[float]:
    """The known scores of all rows in a task."""
    scores = [(row.dev if split == "dev" else row.test)[task] for row in rows]
    return [score for score in scores if math.isfinite(score)]


def evaluations_before_groups(algorithm: Search) -> int:
    """How many evaluations a search makes with one coefficient per expert: whole populations."""
    first = getattr(algorithm, "coarse_points", 0)
    return math.ceil(first / algorithm.pop_size) * algorithm.pop_size


def notes_of_groups(algorithm: Search, points: Sequence[Sequence[float]]) -> list[str]:
    """A note if the search ended before an expert had a coefficient in each group.

    :param points: `n g` coefficients of each merge that was evaluated.
    """
    first = evaluations_before_groups(algorithm)
    if not first or not points or not are_coarse(torch.tensor(points), algorithm.blocks):
        return []
    return [
        f"all {len(points)} merges had one coefficient per expert: groups get their own after "
        f"{first} evaluations"
    ]


def notes_of_box(problem: LoRAMergeProblem, box: torch.Tensor | None) -> list[str]:
    """A note if the box was opened, with the bounds of every expert for which it was.

    :param box: a `(2, n g)` tensor, the box of the search in the end, or None if it has none.
    """
    if box is None:
        return []
    lower, upper = (problem.groups.by_expert(bound) for bound in box.cpu())  # (n, g) each
    given_lower, given_upper = (problem.groups.by_expert(bound) for bound in problem.box)
    opened = ((lower < given_lower) | (upper > given_upper)).any(1)
    shown = []
    for place in opened.nonzero()[:, 0].tolist():
        name = sanitize(problem.experts[place].name)
        bounds = f"{float(lower[place].min()):.4g} to {float(upper[place].max()):.4g}"
        shown.append(f"{name} ({bounds})")
    if not shown:
        return []
    return [
        "the best merge stood at the edge of the box, which was opened there: " + ", ".join(shown)
    ]
