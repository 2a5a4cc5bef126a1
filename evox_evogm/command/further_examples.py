"""Further dev examples: those that a task's source has beyond the ones that the search sees."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evox_evogm.command.task_settings import TaskSettings
from evox_evogm.command.tasks import RunTasks, read_task
from evox_evogm.problems.images.image_task import ImageExample
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.harness.documents import content_of
from evox_evogm.problems.tasks.task import Task


def read_further(
    entries: Sequence[TaskSettings],
    tasks: RunTasks,
    folder: Path,
    count: int | None,
    base: str | None = None,
) -> list[Task]:
    """The tasks of a run with further dev examples in place of those of the search.

    Of reasoning-gym these are the questions that would come next. Of files and of the LM Evaluation
    Harness they are those after the ones that `dev` takes. None stands in dev or in test.

    :param entries: the settings of each task.
    :param tasks: the tasks of the run, in this order.
    :param folder: the folder that paths are relative to.
    :param count: how many of each task, where there are so many; by default as many as in dev.
    :param base: see `read_tasks`.
    :return: the tasks that have any.
    :raises ValueError: if no task has any.
    """
    found = []
    for entry, dev, test in zip(entries, tasks.dev, tasks.test, strict=True):
        examples = _further(entry, dev, test, folder, count or len(dev.examples), base)
        if examples:
            found.append(replace(dev, examples=tuple(examples)))
    if not found:
        raise ValueError(
            "confirm: expected further dev examples beyond those that the search sees, found none; "
            "give a smaller dev to a task, or more lines in its file"
        )
    return found


def _further(
    entry: TaskSettings, dev: Task, test: Task, folder: Path, count: int, base: str | None
) -> list:
    """At most `count` further examples of a task, see `read_further`."""
    # A function has no examples, and what is scored as a whole has no mean over examples.
    as_a_whole = isinstance(dev, CustomTask) and not dev.scores_by_example
    if entry.reader == "fitness" or as_a_whole or entry.dev is None:  # all are in dev
        return []
    longer = entry.model_copy(update={"dev": entry.dev + count})
    try:
        candidates = read_task(longer, folder, base)[0].examples
    except ValueError as error:
        raise ValueError(f"confirm: {error}; take a smaller confirm_examples") from error
    ids = {example.id for example in dev.examples}
    used = {_question(example) for example in (*dev.examples, *test.examples)}
    further: list = []
    for example in candidates:
        question = _question(example)
        if example.id not in ids and question not in used and len(further) < count:
            used.add(question)
            further.append(example)
    return further


def _question(example) -> tuple:
    """What an example asks: of the harness the document, without worked examples."""
    if hasattr(example, "source"):
        return (content_of(example.source.documents[example.place]),)
    if isinstance(example, ImageExample):
        return (example.id,)
    return example.prompt, example.target, example.choices


def notes_of_further(further: Sequence[Task], tasks: RunTasks, count: int | None) -> list[str]:
    """A note for every task with fewer further examples than are wanted.

    :param further: what `read_further` gave.
    :param count: as in `read_further`.
    """
    sizes = {task.name: len(task.examples) for task in further}
    notes = []
    for task in tasks.dev:
        wanted, has = count or len(task.examples), sizes.get(task.name, 0)
        if has < wanted:
            expected = f"expected {wanted} further dev examples of task {task.name!r}"
            notes.append(f"confirm: {expected}, found {has}")
    return notes
