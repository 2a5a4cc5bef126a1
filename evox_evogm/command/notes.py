"""Notes of a run, a line each: what was found out about its parts, for log, files and report."""

from collections.abc import Sequence

from evox_evogm.command.escaping import sanitize
from evox_evogm.command.scores import ScoreRow, label
from evox_evogm.command.tasks import RunTasks
from evox_evogm.problems.lora_merge import LoRAMergeProblem


def notes_of_inputs(problem: LoRAMergeProblem, tasks: RunTasks) -> list[str]:
    """What is known before the first evaluation: of the tasks, and of the base and the experts."""
    lines = [*tasks.notes, *problem.notes, *problem.capabilities.notes]
    return [sanitize(line) for line in lines]


def notes_of_failed_rows(rows: Sequence[ScoreRow]) -> list[str]:
    """A note for every row of the final table that has no scores."""
    notes = []
    for row in rows:
        if row.failure is not None:
            shown = label(row.kind, row.name)
            notes.append(f"{shown}: could not be scored: {sanitize(row.failure)}")
    return notes
