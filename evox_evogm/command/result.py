"""The result of a run: `result.json`, the report, and the card of the adapter."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from evox_evogm.command.domains import describe_domains
from evox_evogm.command.licences import licences_of, used_experts
from evox_evogm.command.model_card import model_card
from evox_evogm.command.report import report_markdown
from evox_evogm.command.run_folder import RESULT, damaged, read_table
from evox_evogm.command.scores import ScoreRow
from evox_evogm.command.significance import describe_significance, history_scores
from evox_evogm.command.task_settings import SPLITS
from evox_evogm.command.tasks import RunTasks
from evox_evogm.monitoring.escaping import escape_markdown
from evox_evogm.monitoring.progress import full_evaluations
from evox_evogm.problems.adapters.read_adapter import CONFIG
from evox_evogm.problems.images.image_exports import auto_name
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.journal import to_json

EXAMPLES = "scores_by_example.json"


def describe_merge(
    problem: LoRAMergeProblem,
    best: torch.Tensor,
    rows: Sequence[ScoreRow],
    tasks: RunTasks,
    records: Sequence[dict],
) -> dict:
    """What `result.json` says of the best merge and of its evaluations.

    :param best: `(n g,)` effective coefficients.
    :param rows: of the final table.
    :param records: the history.
    """
    model = problem.language_model
    images = {"images": auto_name(model.model)} if isinstance(model, ImageModel) else {}
    return {
        **images,
        **describe_coefficients(problem, best),
        "scores": [row.as_table() for row in rows],
        "statistics": describe_significance(
            rows, history_scores(problem, records), problem.objective
        ),
        "evaluations": len(records),
        "full_evaluations": round(full_evaluations(records), 2),
        "minibatches": problem.minibatches,
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "tasks": describe_tasks(problem, tasks),
        "domains": describe_domains(rows, tasks.domains),
        "regmean": problem.regmean,
        "keep_experts": problem.keep_experts,
        "licences": licences_of(problem, used_experts(problem, best)).as_table(),
    }


def describe_coefficients(problem: LoRAMergeProblem, best: torch.Tensor) -> dict[str, Any]:
    """What `result.json` says of the coefficients: by expert, and with several groups by group.

    :param best: `(n g,)` effective coefficients.
    :return: `coefficients`, the coefficient of every expert or its mean over groups,
        `coefficients_by_group`, by expert and group, empty with one group, and `checkpoints`, the
        names of experts that are whole models. Where an expert has nothing in a group, the
        coefficient is None, and does not count in the mean.
    """
    table = problem.groups.by_expert(best)  # (n, g)
    used = problem.groups.by_expert(problem.scorer.used_coefficients)  # (n, g)
    means: dict[str, float] = {}
    by_group: dict[str, dict[str, float | None]] = {}
    for expert, row, counts in zip(problem.experts, table, used, strict=True):
        means[expert.name] = float(row[counts].mean()) if counts.any() else 0.0
        by_group[expert.name] = {}
        for group, value, count in zip(problem.groups.names, row.tolist(), counts, strict=True):
            by_group[expert.name][group] = value if count else None
    if problem.groups.count == 1:
        by_group = {}
    checkpoints = [expert.name for expert in problem.experts if expert.checkpoint is not None]
    return {
        "coefficients": means,
        "coefficients_by_group": by_group,
        "checkpoints": checkpoints,
    }


def read_coefficients(result: dict, problem: LoRAMergeProblem) -> torch.Tensor:
    """The `(n g,)` effective coefficients of a result.

    :param result: what `result.json` holds.
    """
    rows = []
    for expert in problem.experts:
        if result["coefficients_by_group"]:
            by_group = result["coefficients_by_group"][expert.name]
            rows.append([by_group[name] or 0.0 for name in problem.groups.names])
        else:
            rows.append([result["coefficients"][expert.name]])
    return torch.tensor(rows).flatten()


def describe_tasks(problem: LoRAMergeProblem, tasks: RunTasks) -> dict[str, dict]:
    """What `result.json` says of every task, by its name."""
    described = {}
    for dev, test in zip(tasks.dev, tasks.test, strict=True):
        described[dev.name] = {
            "metric": dev.metric,
            "mode": problem.modes[dev.name],
            "version": dev.version,
            "dev": len(dev.examples),
            "test": len(test.examples),
        }
        if not isinstance(dev, CustomTask):  # they ask in a way of their own
            described[dev.name]["protocol"] = dev.protocol
    return described


def read_result(out: Path) -> dict:
    """What `result.json` of a finished run holds.

    :raises ValueError: if it is damaged.
    """
    missing: dict = {"notes": [], "no_information": None, "coefficients_by_group": {}}
    missing["stopped"] = None
    missing["confirm"] = None
    missing["checkpoints"] = []
    missing["statistics"] = None
    missing["domains"] = {}
    missing["lm_eval"] = []
    missing["keep_experts"] = False
    result = {**missing, **read_table(out / RESULT, json.loads)}
    try:
        for row in result["scores"]:
            for split in SPLITS:
                row[split] = {name: float(score) for name, score in row[split].items()}
            row["errors"] = _read_errors(row)
        for entry in result["lm_eval"]:
            entry |= {name: float(entry[name]) for name in ("run", "lm_eval")}
        if result["adapter"]:
            result["adapter"] = {"sha256": {}, "error": None, **result["adapter"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(damaged(out / RESULT, error)) from error
    return result


def _read_errors(row: dict) -> dict[str, dict[str, float]]:
    """The standard errors of a row by split and task; NaN in a result without them."""
    errors: dict[str, dict[str, float]] = {}
    for split in SPLITS:
        found = row.get("errors", {}).get(split, {})
        errors[split] = {name: float(found.get(name, math.nan)) for name in row[split]}
    return errors


def write_examples(rows: Sequence[ScoreRow], tasks: RunTasks, out: Path) -> None:
    """Write `scores_by_example.json`: the score of every row of the table on every example.

    :param rows: of the final table.
    :param tasks: in both splits, with the examples in the order of the scores.
    :param out: the run folder.
    """
    text = json.dumps(to_json(examples_table(rows, tasks))) + "\n"
    atomic_write(out / EXAMPLES, text.encode())


def examples_table(rows: Sequence[ScoreRow], tasks: RunTasks) -> dict[str, Any]:
    """What `scores_by_example.json` holds, see `write_examples`."""
    ids: dict[str, dict] = {split: {} for split in SPLITS}
    for split, task in tasks.by_split():
        names = [example.id for example in task.examples]
        as_a_whole = isinstance(task, CustomTask) and not task.scores_by_example
        ids[split][task.name] = ["all"] if as_a_whole else names
    tables = []
    for row in rows:
        table: dict = {"name": row.name, "kind": row.kind}
        for split in SPLITS:
            scores = row.examples.get(split, {})
            table[split] = {name: list(values) for name, values in scores.items()}
        tables.append(table)
    return {"examples": ids, "rows": tables}


def write_result(result: dict, out: Path, folder: Path) -> None:
    """Write the report, the card of the adapter, and `result.json`.

    :param result: what `result.json` is to hold.
    :param out: the run folder.
    :param folder: the folder that paths in the settings are relative to.
    """
    atomic_write(out / "report.md", report_markdown(result).encode())
    if result["adapter"]:
        write_card(result, out / result["adapter"]["folder"], folder)
    text = json.dumps(to_json(result), indent=2) + "\n"
    atomic_write(out / RESULT, text.encode())  # last: now the run is finished


def write_card(result: dict, adapter: Path, folder: Path) -> None:
    """Write the card of the adapter, which says so where the adapter cannot be used.

    :param adapter: the folder of the adapter.
    :param folder: the folder that paths in the settings are relative to.
    """
    error = result["adapter"]["error"]
    if error is None:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        facts = {**result, "encoder_decoder": config.get("task_type") == "SEQ_2_SEQ_LM"}
        card = model_card(facts, config["base_model_name_or_path"], folder)
    else:
        card = f"# Do not use this adapter\n\n{escape_markdown(error)}\n"
    if adapter.is_dir():
        atomic_write(adapter / "README.md", card.encode())
