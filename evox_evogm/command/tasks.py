"""From the settings of tasks to the tasks themselves: a dev and a test task for every entry."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from evox_evogm.command.task_settings import TaskSettings, parse_task
from evox_evogm.problems.tasks.readers import read_json_lines, read_reasoning_gym, read_swarm_eval
from evox_evogm.problems.tasks.task import Task


@dataclass(frozen=True)
class RunTasks:
    """The tasks of a run, of one name and metric in both splits.

    :param dev: what the search sees.
    :param test: what scores the final table besides, in the same order.
    :param notes: a line for every split that has fewer examples than the settings want.
    """

    dev: list[Task]
    test: list[Task]
    notes: list[str] = field(default_factory=list)

    def by_split(self) -> list[tuple[str, Task]]:
        """All dev tasks, then all test tasks, each with the name of its split."""
        dev = [("dev", task) for task in self.dev]
        return dev + [("test", task) for task in self.test]


def read_tasks(entries: Iterable[TaskSettings], folder: Path) -> RunTasks:
    """Read the tasks of a run.

    :param entries: the settings of each.
    :param folder: the folder that paths are relative to.
    :raises ValueError: if a file or an example cannot be used.
    """
    tasks = RunTasks([], [])
    for entry in entries:
        dev, test = read_task(entry, folder)
        tasks.dev.append(dev)
        tasks.test.append(test)
        tasks.notes.extend(note_too_few(dev, "dev", entry.dev))
        tasks.notes.extend(note_too_few(test, "test", entry.test))
    return tasks


def note_too_few(task: Task, split: str, wanted: int | None) -> list[str]:
    """A note if a split has fewer examples than the settings want, else none."""
    found = len(task.examples)
    if wanted is None or found >= wanted:
        return []
    return [f"task {task.name!r}: expected {wanted} {split} examples, found {found}, used all"]


def read_task(entry, folder: Path) -> tuple[Task, Task]:
    """Read one task.

    :param entry: `TaskSettings`, or a table of them.
    :param folder: the folder that paths are relative to.
    :return: the dev and the test task.
    :raises ValueError: if the entry, a file or an example cannot be used.
    """
    entry = parse_task(entry)
    if entry.reader == "reasoning_gym":
        return read_reasoning_gym(
            entry.source,
            dev=entry.dev,
            test=entry.test,
            seed=entry.seed,
            options=entry.options,
            name=entry.name,
            **entry.scoring,
        )
    path = folder / entry.source
    if entry.reader == "json_lines":
        test_path = folder / entry.test_file
        dev, test = read_json_lines(path, test_path, name=entry.name, **entry.scoring)
    else:
        dev, test = read_swarm_eval(path, name=entry.name, **entry.scoring)
    return _first(dev, entry.dev), _first(test, entry.test)


def _first(task: Task, count: int | None) -> Task:
    """The task with its first examples, or all."""
    return task if count is None else task.take(count)
