"""The card of an exported merge, as the hub, peft and transformers have it: `README.md`.

The metadata hold what the hub shows and searches: base, library, tags, licence, scores. Beside
these, `merge_coefficients` and `merge_licences` are for programs, such as `push_to_hub`.
"""

import math
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from evox_evogm.command.experts import count_given
from evox_evogm.command.number_format import with_error
from evox_evogm.command.score_table import has_errors, table_cells
from evox_evogm.command.templates import render
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.adapters.regmean import REGRESSED
from evox_evogm.problems.adapters.same_base import hub_id

TAGS = ["lora", "merge", "evogm", "evox"]
MERGE_LICENCES = "merge_licences"  # in the metadata
# What the hub calls a score, by our metric.
METRIC_TYPES = {
    "choice_likelihood": "accuracy",
    "multiple_choice_generation": "accuracy",
    "exact_match": "exact_match",
    "image_accuracy": "accuracy",
}
# What a card may lack of a result.
MISSING: dict = {
    "algorithm": None,
    "evaluations": None,
    "versions": {},
    "seed": None,
    "coefficients_by_group": {},
    "regmean": False,
    "keep_experts": False,
    "scores": [],
    "tasks": {},
    "licences": None,
    "sources": {},
    "checkpoints": [],
    "encoder_decoder": False,
    "quantization": None,
    "images": None,  # the class that loads an image model
}


def model_card(result: dict, base: str, folder: Path, *, export: dict | None = None) -> str:
    """The card of a merge.

    :param result: what `result.json` holds, or as much of it as is known.
    :param base: the name of the base model. Where it is a hub id the metadata has it too.
    :param folder: the folder that paths in the settings are relative to.
    :param export: `Exported.as_table()` of what the card belongs to; by default it is the adapter
        of a run.
    """
    facts = {**MISSING, **result}
    kind = "adapter" if export is None else export["kind"]
    hub_base = _is_hub_id(base, folder)
    rows = facts["scores"]
    table = table_cells(rows, list(rows[0]["dev"])) if rows else []
    facts |= {
        # The path of a base is of no use to others, and tells them of this machine.
        "base": base if hub_base else re.split(r"[/\\]", base.rstrip("/\\"))[-1],
        "rounded": _rounded(facts) if export is None else None,
        "kind": kind,
        "auto": "Seq2SeqLM" if facts["encoder_decoder"] else "CausalLM",
        "export": export,
        "count_given": count_given(facts),
        "licence_of": _licences_by_name(facts),
        "table": table,
        "has_errors": has_errors(rows) if rows else False,
        "checks": [] if export is None else _score_lines(export),
    }
    text = render("model_card.md.j2", **facts)
    data = _metadata(facts, base if hub_base else None)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _licences_by_name(facts: dict) -> dict[str, str]:
    """The licence of the adapter behind each coefficient, or that it is not in the merge."""
    parts = (facts["licences"] or {}).get("parts", {})
    suffix = REGRESSED if facts["keep_experts"] else ""
    found = {}
    for name, value in facts["coefficients"].items():
        licence = parts.get(name.removesuffix(suffix), "") if value else ""
        found[name] = licence or "not in the merge"
    return found


def _rounded(facts: dict) -> dict | None:
    """What `result.json` says of the adapter of a run, if that is not exact."""
    adapter = facts.get("adapter") or {}
    return adapter if adapter.get("dtype", "float32") != "float32" else None


def _metadata(facts: dict, base_model: str | None) -> ModelCardData:
    """What the hub reads of a card."""
    kind = facts["kind"]
    licences = facts["licences"] or {}
    more: dict = {}
    if base_model is not None:
        more["base_model_relation"] = "merge" if kind in ("model", "mergekit") else "adapter"
    results = _eval_results(facts)
    if results:
        more |= {"eval_results": results, "model_name": "merge"}
    if licences:
        parts = {sanitize(name): found for name, found in licences["parts"].items()}
        more[MERGE_LICENCES] = {
            "parts": parts,
            "conflicts": licences["conflicts"],
            "unknown": [sanitize(name) for name in licences["unknown"]],
            "unruled": [sanitize(name) for name in licences.get("unruled", [])],
        }
    coefficients = facts["coefficients"].items()
    more["merge_coefficients"] = {sanitize(name): value for name, value in coefficients}
    return ModelCardData(
        base_model=base_model,
        library_name="transformers" if kind in ("model", "mergekit") else "peft",
        tags=TAGS if kind in ("adapter", "compressed") else TAGS[1:],
        license=licences.get("licence"),
        pipeline_tag=_pipeline(facts),
        **more,
    )


def _pipeline(facts: dict) -> str:
    """What the hub calls the work of the base."""
    if facts["images"] is not None:
        return "image-classification"
    return "text2text-generation" if facts["encoder_decoder"] else "text-generation"


def _eval_results(facts: dict) -> list[EvalResult]:
    """The scores of what the card belongs to, as the hub shows them."""
    by_split, errors = {}, {}
    if facts["export"] is not None:
        by_split, errors = facts["export"]["scores"], facts["export"]["errors"]
    elif facts["scores"]:
        row = facts["scores"][-1]
        by_split = {split: row[split] for split in ("dev", "test")}
        errors = row.get("errors") or {}
    found = []
    for split, scores in by_split.items():
        for task, score in scores.items():
            if isinstance(score, float) and math.isfinite(score):
                error = errors.get(split, {}).get(task)
                found.append(_eval_result(facts, task, split, score, error))
    return found


def _eval_result(facts: dict, task: str, split: str, score: float, error) -> EvalResult:
    metric = facts["tasks"].get(task, {}).get("metric", "score")
    named = metric.replace("_", " ")
    if isinstance(error, float) and math.isfinite(error):
        named += f" (standard error {error:.3f})"
    return EvalResult(
        task_type=_pipeline(facts),
        dataset_type=sanitize(task),
        dataset_name=sanitize(task),
        dataset_split=split,
        metric_type=METRIC_TYPES.get(metric, metric),
        metric_value=round(score, 4),
        metric_name=named,
    )


def _score_lines(export: dict) -> list[list[str]]:
    """A line a task and split: the score of the export, and that of the merge it was made from."""
    lines = []
    for split, scores in export["scores"].items():
        for task, score in scores.items():
            error = export["errors"].get(split, {}).get(task)
            merge = export["merge_scores"].get(split, {}).get(task)
            merge_error = export.get("merge_errors", {}).get(split, {}).get(task)
            lines.append([task, split, _with_error(score, error), _with_error(merge, merge_error)])
    return lines


def _with_error(score, error) -> str:
    if not isinstance(score, float):
        return "none"
    return with_error(score, error if isinstance(error, float) else math.nan)


def _is_hub_id(name: str, folder: Path) -> bool:
    """Whether a name has the form owner/name, and is no path here or from a folder."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return hub_id(name) == name and not (folder / name).exists()
