"""Notes of a run, a line each: what was found out about its parts, for log, files and report."""

from collections.abc import Sequence

import torch

from evox_evogm.command.scores import ScoreRow, label
from evox_evogm.command.search_algorithm import Search
from evox_evogm.command.sources import note_of_sources
from evox_evogm.command.tasks import RunTasks
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.lora_merge import LoRAMergeProblem


def notes_of_inputs(problem: LoRAMergeProblem, tasks: RunTasks) -> list[str]:
    """What is known before the first evaluation: of the tasks, and of the base and the experts."""
    lines = [*note_of_sources(problem), *tasks.notes, *problem.notes, *problem.capabilities.notes]
    return [sanitize(line) for line in lines]


def notes_of_failed_rows(rows: Sequence[ScoreRow]) -> list[str]:
    """A note for every row of the final table that has no scores."""
    notes = []
    for row in rows:
        if row.failure is not None:
            shown = label(row.kind, row.name)
            notes.append(f"{shown}: could not be scored: {sanitize(row.failure)}")
    return notes


def notes_of_groups(algorithm: Search, evaluations: int) -> list[str]:
    """A note if the search ended before an expert had a coefficient in each group.

    :param evaluations: that the search has made.
    """
    first = getattr(algorithm, "coarse_points", 0)
    if evaluations > first or not first:
        return []
    return [
        f"all {evaluations} merges had one coefficient per expert: groups get their own after "
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
