"""The result of a run: `result.json`, the report, and the merge as one adapter with its card."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from evox_evogm.command.progress import full_evaluations
from evox_evogm.command.report import model_card, report_markdown
from evox_evogm.command.run_folder import RESULT
from evox_evogm.command.scores import ScoreRow
from evox_evogm.command.tasks import RunTasks
from evox_evogm.problems.adapters.read_adapter import CONFIG
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.journal import to_json

ADAPTER = "adapter"
EXACT = 1e-5  # relative difference of weights up to which a reloaded adapter counts as the merge


def export_merge(problem: LoRAMergeProblem, best: torch.Tensor, out: Path) -> dict | None:
    """Export a merge as one adapter, and check it with plain peft.

    :param best: `(n,)` effective coefficients.
    :param out: the run folder.
    :return: what `result.json` says of the adapter; None if all coefficients are 0, as in the base.
    :raises RuntimeError: if plain peft reads another merge.
    """
    if not bool((best != 0).any()):
        return None
    difference = problem.export(best, out / ADAPTER)
    if difference > EXACT:
        found = f"found one that differs by {difference:.1e}, over {EXACT}"
        raise RuntimeError(f"adapter: expected the weights of the merge, {found} (relative)")
    return {"folder": ADAPTER, "largest_relative_difference": difference}


def describe_merge(
    problem: LoRAMergeProblem,
    best: torch.Tensor,
    rows: Sequence[ScoreRow],
    tasks: RunTasks,
    records: Sequence[dict],
) -> dict:
    """What `result.json` says of the best merge and of its evaluations.

    :param best: `(n,)` effective coefficients.
    :param rows: of the final table.
    :param records: the history.
    """
    coefficients = {}
    for expert, value in zip(problem.experts, best.tolist(), strict=True):
        coefficients[expert.name] = value
    return {
        "coefficients": coefficients,
        "scores": [asdict(row) for row in rows],
        "evaluations": len(records),
        "full_evaluations": round(full_evaluations(records), 2),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "tasks": describe_tasks(problem, tasks),
        "regmean": problem.regressed,
    }


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
    return described


def write_result(result: dict, out: Path) -> None:
    """Write the report, the card of the adapter, and `result.json`.

    :param result: what `result.json` is to hold.
    :param out: the run folder.
    """
    atomic_write(out / "report.md", report_markdown(result).encode())
    if result["adapter"]:
        adapter = out / result["adapter"]["folder"]
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        card = model_card(result, config["base_model_name_or_path"])
        atomic_write(adapter / "README.md", card.encode())
    text = json.dumps(to_json(result), indent=2) + "\n"
    atomic_write(out / RESULT, text.encode())  # last: now the run is finished
