"""Where base and experts of a run come from: the commits of the hub by which it can be repeated."""

import json
from collections.abc import Mapping
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
from evox_evogm.problems.inference.find_base import source_of_model
from evox_evogm.problems.lora_merge import LoRAMergeProblem

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
    settings: RunSettings, folder: Path, experts: Mapping[str, Path], problem: LoRAMergeProblem
) -> dict[str, str]:
    """The commit of every repository and revision that the settings name.

    :param folder: the folder that paths in the settings are relative to.
    :param experts: the adapter folder of every expert.
    """
    given = settings.experts
    named = list(given.values()) if isinstance(given, dict) else given
    words = [named] * len(experts) if isinstance(named, str) else [str(word) for word in named]
    commits = {}
    for word, path in zip(words, experts.values(), strict=True):
        source, found = parse_hub_source(word, folder), source_of_folder(path)
        if source is not None and found is not None and found.revision is not None:
            commits[source.at_revision] = found.revision
    source, found = parse_hub_source(settings.base, folder), source_of_base(problem)
    if source is not None and found is not None and found.revision is not None:
        commits[source.at_revision] = found.revision
    return commits


def sources_of(problem: LoRAMergeProblem) -> dict[str, str]:
    """Repository, commit and folder of what came from the hub, by `base` and names of experts."""
    sources = {}
    base = source_of_base(problem)
    if base is not None:
        sources["base"] = str(base)
    for expert in problem.experts:
        source = source_of_folder(expert.folder)
        if source is not None:
            sources[f"expert {expert.name}"] = str(source)
    return sources


def source_of_base(problem: LoRAMergeProblem) -> HubSource | None:
    """The repository and the commit of the base, or None if it is a folder of this machine."""
    return source_of_model(problem.language_model.model)


def note_of_sources(problem: LoRAMergeProblem) -> list[str]:
    """A note that says what was taken from the hub, or none."""
    shown = []
    base = source_of_base(problem)
    if base is not None:
        shown.append(f"base {shown_source(base)}")
    for expert in problem.experts:
        source = source_of_folder(expert.folder)
        if source is not None:
            shown.append(f"expert {expert.name} {shown_source(source)}")
    return [f"from the hub: {', '.join(shown)}"] if shown else []
