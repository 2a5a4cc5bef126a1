"""Where base, experts and heads of a run come from: the commits by which it can be repeated."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from evox_evogm.command.relative_paths import place_of, with_home
from evox_evogm.command.run_folder import INPUTS, has_begun, read_table
from evox_evogm.command.settings import RunSettings
from evox_evogm.problems.adapters.hub_source import (
    SCHEME,
    HubSource,
    name_like,
    parse_hub_source,
    shown_source,
    source_of_folder,
)
from evox_evogm.problems.images.image_task import ImageTask
from evox_evogm.problems.inference.find_base import source_of_model
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.tasks.task import Task

HUB = "hub"  # in `inputs.json`: commits by repository and revision


def base_of_settings(
    settings: RunSettings, folder: Path, commits: Mapping[str, str] | None = None
) -> str:
    """The base of a run as `LoRAMergeProblem` takes it.

    :param folder: the folder that paths in the settings are relative to.
    :param commits: those that an earlier process found, see `saved_commits`.
    """
    local = place_of(settings.base, folder)
    if local.is_dir():
        return str(local)
    source = parse_hub_source(settings.base, folder)
    if source is None:
        return with_home(settings.base)
    elsewhere = Path(source.repository).exists()  # in the folder of the process
    return name_like(source.pinned(commits or {}), SCHEME if elsewhere else settings.base)


def saved_commits(out: Path) -> dict[str, str]:
    """The commits that a run in a folder was begun with; none where there is no run."""
    if not has_begun(out):
        return {}
    commits = read_table(out / INPUTS, json.loads).get(HUB)
    if not isinstance(commits, dict):
        return {}
    return {str(name): str(commit) for name, commit in commits.items()}


def commits_of(
    settings: RunSettings,
    folder: Path,
    experts: Mapping[str, Path],
    problem: LoRAMergeProblem,
    tasks: Sequence[Task],
) -> dict[str, str]:
    """The commit of every repository and revision that the settings name.

    :param folder: the folder that paths in the settings are relative to.
    :param experts: the adapter folder of every expert.
    :param tasks: of one split, in the order of the settings.
    """
    given = settings.experts
    named = list(given.values()) if isinstance(given, dict) else given
    words = [named] * len(experts) if isinstance(named, str) else [str(word) for word in named]
    found_sources: list[tuple[str, HubSource | None]] = []  # of every name in the settings
    for word, path in zip(words, experts.values(), strict=True):
        found_sources.append((word, source_of_folder(path)))
    for entry, task in zip(settings.tasks, tasks, strict=True):
        if entry.head is not None:
            found_sources.append((entry.head, source_of_head(task)))
    found_sources.append((settings.base, source_of_base(problem)))
    commits = {}
    for word, found in found_sources:
        source = parse_hub_source(word, folder)
        if source is not None and found is not None and found.revision is not None:
            commits[source.at_revision] = found.revision
    return commits


def sources_of(problem: LoRAMergeProblem) -> dict[str, str]:
    """Repository, commit and folder of what came from the hub.

    :return: under `base`, `expert NAME`, and `head of TASK`.
    """
    return {name: str(source) for name, source in _hub_sources(problem).items()}


def _hub_sources(problem: LoRAMergeProblem) -> dict[str, HubSource]:
    found = {"base": source_of_base(problem)}
    for expert in problem.experts[: problem.n_given]:
        found[f"expert {expert.name}"] = source_of_folder(expert.folder)
    for task in problem.tasks:
        found[f"head of {task.name}"] = source_of_head(task)
    return {name: source for name, source in found.items() if source is not None}


def source_of_head(task: Task) -> HubSource | None:
    """The repository and the commit of a task's head, or None if it has none from there."""
    if not isinstance(task, ImageTask) or task.head.source is None:
        return None
    return source_of_folder(task.head.source)


def source_of_base(problem: LoRAMergeProblem) -> HubSource | None:
    """The repository and the commit of the base, or None if it is a folder of this machine."""
    return source_of_model(problem.language_model.model)


def note_of_sources(problem: LoRAMergeProblem) -> list[str]:
    """A note that says what was taken from the hub, or none."""
    shown = []
    for name, source in _hub_sources(problem).items():
        shown.append(f"{name} {shown_source(source)}")
    return [f"from the hub: {', '.join(shown)}"] if shown else []
