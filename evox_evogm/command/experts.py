"""The experts that the settings of a run name: their folders, and the tasks they were made for."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from evox_evogm.command.relative_paths import with_home
from evox_evogm.problems.adapters.find_adapters import (
    find_adapter,
    find_adapters,
    name_of_source,
)
from evox_evogm.problems.adapters.read_adapter import describe
from evox_evogm.problems.tasks.task import Task


def expert_folders(
    experts, folder: Path, commits: Mapping[str, str] | None = None
) -> dict[str, Path]:
    """The folder of every expert, by its name. Those of hub ids are downloaded.

    :param experts: the setting: a folder of adapter folders or a repository of adapters, a list of
        adapters, or a table of names and adapters. An adapter is a folder or a hub id.
    :param folder: the folder that paths are relative to.
    :param commits: those that an earlier process found, see `find_adapter`.
    :raises ValueError: if there is no expert, two have one name, or the hub does not have one.
    """
    if isinstance(experts, str):
        return find_adapters(with_home(experts), folder, commits)
    if not isinstance(experts, (list, dict)):
        raise ValueError(f"experts: expected a folder, a list or a table, found {experts!r}")
    if not experts:
        raise ValueError("experts: expected at least one adapter folder, found none")
    named = _named(experts, folder)
    found = {}
    for name, source in named.items():
        found[name] = find_adapter(source, describe(name, source), folder, commits)
    return found


def _named(experts: list | dict, folder: Path) -> dict[str, str]:
    """What the settings give for every expert, by its name."""
    if isinstance(experts, dict):
        named = {str(name): with_home(str(source)) for name, source in experts.items()}
        advice = f"found some that read the same in {list(experts)}"
        expected = "expected different names"
    else:
        named = {}
        for source in experts:
            place = with_home(str(source))
            named[name_of_source(place, folder)] = place
        advice = "found some twice; give a table of names and folders"
        expected = "expected folders with different names"
    if len(named) < len(experts):
        raise ValueError(f"experts: {expected}, {advice}")
    return named


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


def count_given(result: dict) -> int:
    """How many experts were merged; one that is there regressed and as it is counts once.

    :param result: what `result.json` holds.
    """
    count = len(result["coefficients"])
    return count // 2 if result.get("keep_experts") else count


def whose_coefficients(regmean: bool | str | dict, *, keep_experts: bool) -> str:
    """What the coefficients of a search around RegMean are of, to stand behind "Coefficients are".

    :param regmean: the setting, or what `result.json` says of it.
    :param keep_experts: whether the experts as they are take part.
    """
    regressed = f"regressed on {regressed_on(regmean)}"
    if keep_experts:
        return (
            f"of the experts as they are, and of the same experts {regressed}: 0 for each of the "
            "first and 1 for each of the second is the RegMean merge."
        )
    return f"of the experts {regressed}: 1 for each is the RegMean merge."


def _named_tasks(expert, names: list, by_name: dict[str, Task]) -> list[Task]:
    unknown = [name for name in names if not isinstance(name, str) or name not in by_name]
    if unknown or not names:
        expected = f"expected for expert {expert!r} some of the tasks {', '.join(by_name)}"
        advice = "give a table of experts and their tasks"
        raise ValueError(f"regmean: {expected}, found {unknown[:1] or names}; {advice}")
    return [by_name[name] for name in names]
