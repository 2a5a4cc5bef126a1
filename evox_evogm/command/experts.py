"""The experts that the settings of a run name: their folders, and the tasks they were made for."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from evox_evogm.problems.adapters.read_adapter import CONFIG
from evox_evogm.problems.tasks.task import Task


def expert_folders(experts, folder: Path) -> dict[str, Path]:
    """The folder of every expert, by its name.

    :param experts: the setting: a folder of adapter folders, a list of adapter folders, or a table
        of names and adapter folders.
    :param folder: the folder that paths are relative to.
    :raises ValueError: if there is no expert, or two have one name.
    """
    if isinstance(experts, str):
        return _folders_in(folder / experts)
    if not isinstance(experts, (list, dict)):
        raise ValueError(f"experts: expected a folder, a list or a table, found {experts!r}")
    if not experts:
        raise ValueError("experts: expected at least one adapter folder, found none")
    if isinstance(experts, dict):
        return _folders_in_table(experts, folder)
    return _folders_in_list(experts, folder)


def _folders_in_table(experts: dict, folder: Path) -> dict[str, Path]:
    named = {str(name): folder / str(path) for name, path in experts.items()}
    if len(named) < len(experts):
        found = f"found some that read the same in {list(experts)}"
        raise ValueError(f"experts: expected different names, {found}")
    return named


def _folders_in_list(experts: list, folder: Path) -> dict[str, Path]:
    paths = [folder / str(path) for path in experts]
    named = {path.name: path for path in paths}
    if len(named) < len(experts):
        advice = "found some twice; give a table of names and folders"
        raise ValueError(f"experts: expected folders with different names, {advice}")
    return named


def _folders_in(parent: Path) -> dict[str, Path]:
    if (parent / CONFIG).is_file():  # its checkpoints would be taken for experts
        expected = f"expected a folder of adapter folders in {parent}"
        raise ValueError(
            f"experts: {expected}, found an adapter itself; give a list of adapter folders"
        )
    configurations = sorted(parent.glob(f"*/{CONFIG}"))
    if not configurations:
        expected = f"expected adapter folders with {CONFIG} in {parent}"
        found = "none" if parent.is_dir() else "no such folder"
        raise ValueError(f"experts: {expected}, found {found}")
    return {path.parent.name: path.parent for path in configurations}


def tasks_of_experts(
    regmean: bool | str | dict | None, experts: Iterable[str], tasks: Sequence[Task]
) -> dict[str, list[Task]] | Literal["weights", "prompts"] | None:
    """The tasks that every expert was made for, as far as the RegMean merge needs them.

    :param regmean: the setting: true, where every expert is named as its task; a table of experts
        and the names of their tasks; weights or prompts, which need no tasks; or nothing.
    :param experts: the names of the experts.
    :param tasks: those of the run.
    :return: the tasks by expert, weights or prompts, or None where the search is not around the
        RegMean merge.
    :raises ValueError: if an expert has no task, or a name is unknown.
    """
    if regmean is None or regmean is False:
        return None
    if regmean == "weights" or regmean == "prompts":
        return regmean
    table = {name: name for name in experts} if regmean is True else regmean
    if not isinstance(table, dict):
        expected = "expected true, weights, prompts, or a table of experts and their tasks"
        raise ValueError(f"regmean: {expected}, found {regmean!r}")
    by_name = {task.name: task for task in tasks}
    found = {}
    for expert, names in table.items():
        names = names if isinstance(names, list) else [names]
        found[str(expert)] = _named_tasks(expert, names, by_name)
    return found


def regressed_on(regmean: bool | str | dict) -> str:
    """What experts are regressed on, in the words of a report.

    :param regmean: the setting, or what `result.json` says of it.
    """
    if regmean == "weights":
        return "their weights"
    if regmean == "prompts":
        return "the prompts of all tasks"
    return "their tasks"


def _named_tasks(expert, names: list, by_name: dict[str, Task]) -> list[Task]:
    unknown = [name for name in names if not isinstance(name, str) or name not in by_name]
    if unknown or not names:
        expected = f"expected for expert {expert!r} some of the tasks {', '.join(by_name)}"
        advice = "give a table of experts and their tasks"
        raise ValueError(f"regmean: {expected}, found {unknown[:1] or names}; {advice}")
    return [by_name[name] for name in names]
