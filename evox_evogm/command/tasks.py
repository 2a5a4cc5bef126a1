"""From the settings of tasks to the tasks themselves: a dev and a test task for every entry."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evox_evogm.command.relative_paths import place_of
from evox_evogm.command.task_settings import TaskSettings, parse_task
from evox_evogm.problems.adapters.find_adapters import find_adapter
from evox_evogm.problems.adapters.hub_source import parse_hub_source
from evox_evogm.problems.functions.fitness_task import FitnessTask, fitness_tasks
from evox_evogm.problems.images.fitting_base import check_fits_base
from evox_evogm.problems.images.image_task import ImageTask
from evox_evogm.problems.images.read_images import name_of, read_images
from evox_evogm.problems.inference.base_not_found import check_found
from evox_evogm.problems.tasks.harness.reader import read_lm_eval
from evox_evogm.problems.tasks.harness.task import HarnessTask
from evox_evogm.problems.tasks.readers import read_json_lines, read_reasoning_gym, read_swarm_eval
from evox_evogm.problems.tasks.task import Task

if TYPE_CHECKING:
    from evox_evogm.problems.lora_merge import LoRAMergeProblem


@dataclass(frozen=True)
class RunTasks:
    """The tasks of a run, of one name and metric in both splits.

    :param dev: what the search sees.
    :param test: what scores the final table besides, in the same order.
    :param notes: a line for every split that has fewer examples than the settings want, and for
        what else is unlike what the settings say.
    :param domains: the names of the tasks of each domain.
    """

    dev: list[Task]
    test: list[Task]
    notes: list[str] = field(default_factory=list)
    domains: dict[str, list[str]] = field(default_factory=dict)

    def by_split(self) -> list[tuple[str, Task]]:
        """All dev tasks, then all test tasks, each with the name of its split."""
        dev = [("dev", task) for task in self.dev]
        return dev + [("test", task) for task in self.test]


def read_tasks(
    entries: Iterable[TaskSettings],
    folder: Path,
    base: str | None = None,
    commits: Mapping[str, str] | None = None,
) -> RunTasks:
    """Read the tasks of a run.

    :param entries: the settings of each.
    :param folder: the folder that paths are relative to.
    :param base: as `base_of_settings` gives it; its image processor reads tasks of images.
    :param commits: those that an earlier process found, see `find_adapter`.
    :raises ValueError: if the base is not there, or a file or an example cannot be used.
    """
    tasks = RunTasks([], [])
    if base is not None:
        check_found(base, folder)
    for entry in entries:
        dev, test = read_task(entry, folder, base, commits)
        tasks.dev.append(dev)
        tasks.test.append(test)
        tasks.notes.extend(note_too_few(dev, "dev", entry.dev))
        tasks.notes.extend(note_too_few(test, "test", entry.test))
        tasks.notes.extend(note_one_split(dev))
        tasks.notes.extend(note_left_out(dev))
        if entry.domain is not None:
            tasks.domains.setdefault(entry.domain, []).append(dev.name)
    return tasks


def note_too_few(task: Task, split: str, wanted: int | None) -> list[str]:
    """A note if a split has fewer examples than the settings want, else none."""
    found = len(task.examples)
    if wanted is None or found >= wanted:
        return []
    return [f"task {task.name!r}: expected {wanted} {split} examples, found {found}, used all"]


def note_one_split(task: Task) -> list[str]:
    """A note if a task is a function that does the same on dev and on test."""
    if not isinstance(task, FitnessTask) or task.takes_split:
        return []
    return [
        f"task {task.name!r}: {task.source} takes no argument split, so that it scores test as "
        "dev, and the test score says nothing about unseen examples"
    ]


def note_left_out(task: Task) -> list[str]:
    """A note if documents of the harness stand in dev and in test, else none."""
    if not isinstance(task, HarnessTask) or not task.left_out:
        return []
    return [
        f"task {task.name!r}: found {task.left_out} documents that stand in dev and in test, used "
        "them only in test"
    ]


def with_sizes(tasks: RunTasks, problem: "LoRAMergeProblem") -> RunTasks:
    """The tasks of a run, in which functions have as many examples as they return numbers.

    :param problem: which has found it out.
    """
    splits = []
    for given, found in ((tasks.dev, problem.tasks), (tasks.test, problem.other_tasks)):
        split: list[Task] = []
        for task, other in zip(given, found, strict=True):
            split.append(other if isinstance(other, FitnessTask) else task)
        splits.append(split)
    return replace(tasks, dev=splits[0], test=splits[1])


def read_task(
    entry, folder: Path, base: str | None = None, commits: Mapping[str, str] | None = None
) -> tuple[Task, Task]:
    """Read one task.

    :param entry: `TaskSettings`, or a table of them.
    :param folder: the folder that paths are relative to.
    :param base: see `read_tasks`.
    :param commits: see `read_tasks`.
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
    if entry.reader == "images":
        return read_image_task(entry, folder, base, commits)
    if entry.reader == "fitness":
        return fitness_tasks(
            entry.source,
            name=entry.name,
            folder=folder,
            population=entry.population,
            options=entry.options,
            sizes=entry.sizes,
            margins=bool(entry.margins),
        )
    if entry.reader == "lm_eval":
        return read_lm_eval(
            entry.source,
            name=entry.name,
            metric=entry.metric,
            filter=entry.filter,
            num_fewshot=entry.num_fewshot,
            fewshot_seed=entry.fewshot_seed,
            dev=entry.dev,
            test=entry.test,
            include_path=entry.include_path and str(place_of(entry.include_path, folder)),
            chat=bool(entry.chat),
            system_instruction=entry.system_instruction,
            confirm_unsafe_code=entry.confirm_unsafe_code,
        )
    path = place_of(entry.source, folder)
    if entry.reader == "json_lines":
        test_path = place_of(str(entry.test_file), folder)
        dev, test = read_json_lines(path, test_path, name=entry.name, **entry.scoring)
    else:
        protocol = entry.protocol or "ours"
        dev, test = read_swarm_eval(path, name=entry.name, protocol=protocol, **entry.scoring)
    return _first(dev, entry.dev), _first(test, entry.test)


def read_image_task(
    entry: TaskSettings, folder: Path, base: str | None, commits: Mapping[str, str] | None
) -> tuple[ImageTask, ImageTask]:
    """Read a task of images. Where its settings name no processor it is that of the base."""
    assert entry.images is not None and entry.test_images is not None and entry.head is not None
    name = entry.name or name_of(Path(entry.images))
    if base is not None:
        check_fits_base(name, base, images=True)
    processor = base
    if entry.processor is not None:
        local = place_of(entry.processor, folder)
        processor = str(local) if local.is_dir() else entry.processor
    return read_images(
        place_of(entry.images, folder),
        place_of(entry.test_images, folder),
        head=head_place(entry.head, f"task {name!r}: head", folder, commits),
        processor=processor,
        name=entry.name,
        classes=entry.classes,
        n_dev=entry.dev,
        n_test=entry.test,
        seed=entry.seed,
    )


def head_place(
    head: str, where: str, folder: Path, commits: Mapping[str, str] | None = None
) -> Path:
    """The file or folder of a head; that of a hub id is downloaded.

    :param where: the head as error messages name it.
    :param folder: the folder that relative paths start from.
    :param commits: see `read_tasks`.
    """
    place = place_of(head, folder)
    if place.exists() or parse_hub_source(head, folder) is None:
        return place
    return find_adapter(head, where, folder, commits)


def _first(task: Task, count: int | None) -> Task:
    """The task with its first examples, or all."""
    return task if count is None else task.take(count)
