"""What `evogm export` does: the merge of a run, or of the published code, in a form to be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evox_evogm.command.experts import expert_folders
from evox_evogm.command.exports import (
    Exported,
    export_adapter,
    export_compressed,
    export_full_model,
    export_mergekit_recipe,
    push_to_hub,
    read_published,
)
from evox_evogm.command.objective_remarks import with_front_merge
from evox_evogm.command.opened_run import open_run
from evox_evogm.command.result import read_coefficients
from evox_evogm.command.score_models import problem_of
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.sources import base_of_settings
from evox_evogm.command.tasks import read_tasks
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.checkpoints.full_checkpoint import has_checkpoints
from evox_evogm.problems.lora_merge import LoRAMergeProblem


@dataclass(frozen=True)
class Wanted:
    """What a user wants to have.

    :param kind: adapter, compressed, model or mergekit; None for a model where experts are whole
        models, else for an adapter.
    :param out: the folder; by default `export-KIND` in the run folder, or beside the settings.
    :param dtype: of the weights; by default that of the kind.
    :param rank: of a compressed adapter.
    :param tolerance: the relative error that a compressed adapter may have.
    :param front: the number of a merge of the front in place of the exported one.
    :param further: other options, see `exports.job.Options`.
    :param device: to load and score on; by default that of the settings.
    """

    kind: str | None
    out: Path | None = None
    dtype: str | None = None
    rank: int | None = None
    tolerance: float | None = None
    further: dict[str, Any] | None = None
    front: int | None = None
    device: str | None = None


def export(
    source: Path, wanted: Wanted, settings_file: Path | None, published: Path | None
) -> Exported:
    """Export a merge, load it again, compare and score it, and say what came out.

    :param source: the folder of a finished run; with `published` a settings file too.
    :param settings_file: of the run, where its folder was moved.
    :param published: `best_solution.json` of the published code, in place of the run's result.
    :raises ValueError: if something cannot be exported, in one sentence.
    """
    if source.is_file():
        merge = _of_settings(source, published, wanted.device)
    else:
        merge = _of_run(source, settings_file, published, wanted)
    with merge as (problem, coefficients, options):
        print("writing, loading again and scoring ...", flush=True)
        if wanted.kind is None:
            whole = has_checkpoints(problem.experts)
            wanted = replace(wanted, kind="model" if whole else "adapter")
        point = "" if wanted.front is None else f"-front-{wanted.front}"
        out = wanted.out or _default_folder(source) / f"export-{wanted.kind}{point}"
        exported = _export(problem, coefficients, out, wanted, options)
    for line in exported.lines():
        print(sanitize(line))
    return exported


def _default_folder(source: Path) -> Path:
    return source.parent if source.is_file() else source


@contextmanager
def _of_run(
    out: Path, settings_file: Path | None, published: Path | None, wanted: Wanted
) -> Iterator[tuple[LoRAMergeProblem, torch.Tensor, dict]]:
    print(f"reading the run in {out}, its base, experts and tasks ...", flush=True)
    with open_run(out, settings_file, wanted.device) as merge_run:
        problem, result = merge_run.problem, merge_run.result()
        options: dict = {"tasks": merge_run.tasks, "settings_folder": merge_run.folder}
        if wanted.front is not None:
            result = with_front_merge(result, wanted.front)
        if published is None:
            coefficients = read_coefficients(result, problem)
            yield problem, coefficients, {**options, "result": result}
        else:
            problem = problem.with_experts_as_given()
            yield problem, read_published(published, problem), options


@contextmanager
def _of_settings(
    settings_file: Path, published: Path | None, device: str | None
) -> Iterator[tuple[LoRAMergeProblem, torch.Tensor, dict]]:
    if published is None:
        expected = "expected the folder of a finished run, or a settings file with --from"
        raise ValueError(f"export: {expected}, found {settings_file}")
    print("reading the base model, experts and tasks ...", flush=True)
    settings, folder = read_settings(settings_file, device=device)
    tasks = read_tasks(settings.tasks, folder, base_of_settings(settings, folder))
    experts = expert_folders(settings.experts, folder)
    problem = problem_of(settings, folder, experts, tasks)
    coefficients = read_published(published, problem)
    yield problem, coefficients, {"tasks": tasks, "settings_folder": folder}


def _export(
    problem: LoRAMergeProblem,
    coefficients: torch.Tensor,
    out: Path,
    wanted: Wanted,
    options: dict,
) -> Exported:
    options = {**options, **(wanted.further or {})}
    if wanted.dtype is not None:
        options["dtype"] = wanted.dtype
    if wanted.kind == "adapter":
        return export_adapter(problem, coefficients, out, **options)
    if wanted.kind == "compressed":
        options |= {"rank": wanted.rank, "tolerance": wanted.tolerance}
        return export_compressed(problem, coefficients, out, **options)
    if wanted.kind == "model":
        return export_full_model(problem, coefficients, out, **options)
    return export_mergekit_recipe(problem, coefficients, out, **options)


def upload(folder: Path, repo_id: str, *, private: bool, strict_licences: bool) -> None:
    """Upload an export to the hub, and say where it is."""
    url = push_to_hub(folder, repo_id, private=private, strict_licences=strict_licences)
    print(f"uploaded: {url}")
