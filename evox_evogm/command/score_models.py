"""What `evogm score` does: models on the tasks of a settings file, with standard errors."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from evox_evogm.command.experts import expert_folders
from evox_evogm.command.load_problem import load_problem
from evox_evogm.command.result import examples_table
from evox_evogm.command.score_table import has_errors, print_scores
from evox_evogm.command.scores import Candidate, ScoreRow, score_candidates
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.sources import base_of_settings
from evox_evogm.command.targets import Targets, read_targets
from evox_evogm.command.tasks import RunTasks, read_tasks, with_sizes
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.journal import to_json


def score_words(
    settings: RunSettings, folder: Path, words: Sequence[str]
) -> tuple[list[ScoreRow], RunTasks]:
    """Score the models that words name on the tasks of some settings.

    Experts take part as they were read, also where the settings regress them.

    :param folder: the folder that paths in the settings are relative to.
    :param words: see `read_targets`.
    :return: a row for every word, and the tasks in the order of the scores.
    """
    experts = expert_folders(settings.experts, folder)
    targets = read_targets(words, experts)
    tasks = read_tasks(settings.tasks, folder, base_of_settings(settings, folder))
    problem = problem_of(settings, folder, _folders(targets, experts), tasks)
    names = [expert.name for expert in problem.experts]
    candidates = []
    for target in targets.models:
        point = torch.tensor([target.coefficients.get(name, 0.0) for name in names])
        candidates.append(Candidate(target.name, point, target.kind))
    return score_candidates(problem, tasks, candidates, []), with_sizes(tasks, problem)


def _folders(targets: Targets, experts: dict[str, Path]) -> dict[str, Path]:
    """The adapters that have to be loaded: those that take part in a model, or any one."""
    used: set[str] = set()
    for target in targets.models:
        used.update(target.coefficients)
    folders = {name: path for name, path in experts.items() if name in used}
    folders.update(targets.adapters)
    if not folders:
        first = next(iter(experts))
        folders[first] = experts[first]
    return folders


def problem_of(
    settings: RunSettings, folder: Path, adapters: dict[str, Path], tasks: RunTasks
) -> LoRAMergeProblem:
    """The problem of a run without a search: experts as they are, with one coefficient each."""
    return load_problem(settings, folder, base_of_settings(settings, folder), adapters, tasks)


def print_rows(rows: Sequence[ScoreRow], console: Console) -> None:
    """Print a table of scores."""
    tables = [row.as_table() for row in rows]
    errors = " ± its standard error" if has_errors(tables) else ""
    print(f"scores, dev / test{errors}")
    print_scores(tables, console)
    for row in rows:
        if row.failure is not None:
            print(sanitize(f"note: {row.name}: could not be scored: {row.failure}"))


def write_scores(rows: Sequence[ScoreRow], tasks: RunTasks, path: Path) -> None:
    """Write scores for `evogm compare`: means, standard errors, and the score of every example.

    :param path: a JSON file.
    """
    table = {**examples_table(rows, tasks), "scores": [row.as_table() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(to_json(table)) + "\n").encode())
