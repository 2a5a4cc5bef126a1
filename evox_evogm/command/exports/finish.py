"""What every export has beside its weights: a model card, and `export.json` with the checks."""

import json
from pathlib import Path

from evox_evogm.command.exports.exported import Exported
from evox_evogm.command.exports.job import Job
from evox_evogm.command.model_card import model_card
from evox_evogm.command.result import describe_coefficients
from evox_evogm.problems.images.image_exports import auto_name
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.inference.kinds_of_base import is_encoder_decoder
from evox_evogm.problems.inference.quantized_base import quantized_as
from evox_evogm.resume.atomic_write import atomic_write

FACTS = "export.json"
HERE = "path/of/this/folder"


def write_card(job: Job, exported: Exported, folder: Path) -> None:
    """Write `README.md` and `export.json`.

    :param exported: what was loaded again and compared.
    :param folder: where the files go.
    """
    table = table_elsewhere(exported)
    facts = {**describe_job(job), **(job.result or {})}
    facts["encoder_decoder"] = is_encoder_decoder(job.model)
    facts["quantization"] = quantized_as(job.model)
    if isinstance(job.problem.language_model, ImageModel):
        facts["images"] = auto_name(job.model)
    card = model_card(facts, job.base, job.settings_folder, export=table)
    atomic_write(folder / "README.md", card.encode())
    atomic_write(folder / FACTS, (json.dumps(table, indent=2) + "\n").encode())


def table_elsewhere(exported: Exported) -> dict:
    """An export for its own pages, which may go elsewhere with its folder."""
    return {**exported.as_table(), "folder": ".", "serve": exported.serve_at(HERE)}


def describe_job(job: Job) -> dict:
    """What a card says of a merge of which there is no result."""
    tasks: dict[str, dict] = {}
    for split, of_split in job.splits.items():
        for task in of_split:
            table = tasks.setdefault(task.name, {"metric": task.metric, "dev": 0, "test": 0})
            table[split] = len(task.examples)
    return {
        **describe_coefficients(job.problem, job.coefficients),
        "regmean": job.problem.regmean,
        "keep_experts": job.problem.keep_experts,
        "tasks": tasks,
        "scores": [],
        "licences": job.licences.as_table(),
    }
