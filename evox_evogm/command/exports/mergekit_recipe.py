"""A merge as a recipe that mergekit runs: task arithmetic over the base and its adapters.

mergekit (C. Goddard et al. 2024, arXiv 2403.13257) adapts the base with each adapter, and adds the
differences with the coefficients as weights. All is computed in float32.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from typing_extensions import Unpack

from evox_evogm.command.exports.exported import Exported, ExportFailed, Scores, bytes_in
from evox_evogm.command.exports.finish import write_card
from evox_evogm.command.exports.full_model import SAME, load_language_model
from evox_evogm.command.exports.job import Comparison, Job, Options
from evox_evogm.command.exports.staging import check_free, staged
from evox_evogm.problems.adapters.adapter_dtype import DTYPES
from evox_evogm.problems.adapters.factor_norms import RelativeError
from evox_evogm.problems.adapters.layers import weight_of
from evox_evogm.problems.adapters.merged_model import rounding_error, weight_errors
from evox_evogm.problems.adapters.read_adapter import Expert
from evox_evogm.problems.adapters.same_base import hub_id
from evox_evogm.problems.checkpoints.full_checkpoint import module_of
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.inference.find_base import revision_of
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.resume.atomic_write import atomic_write

RECIPE = "recipe.yaml"
OPTIONS = ["--lora-merge-dtype", "float32"]  # without them adapters are rounded to the base's dtype
# mergekit adapts the base with each adapter in a folder, and stops where it is given none.
CACHE = "--lora-merge-cache"
SPECIAL = "+@"  # what a path must not have, because mergekit splits names there


def export_mergekit_recipe(
    problem: LoRAMergeProblem,
    coefficients,
    out,
    *,
    dtype: str = "float32",
    mergekit: str = "mergekit-yaml",
    **options: Unpack[Options],
) -> Exported:
    """Write `recipe.yaml`, which `mergekit-yaml` turns into the merged model.

    Where that command is found the recipe is run, and the model is loaded and compared. It names
    the base and the adapters where they are now.

    :param problem: whose experts are merged.
    :param coefficients: an `(n g,)` tensor of effective coefficients, not all 0.
    :param out: the folder, new or empty.
    :param dtype: of the model that mergekit writes: float32, bfloat16 or float16.
    :param mergekit: the command, or its path.
    :param options: see `Options`.
    :raises ValueError: if mergekit cannot make this merge, in one sentence.
    :raises ExportFailed: if mergekit fails or makes another model. Then nothing is left in `out`.
    """
    check_free(Path(out), replace=options.get("replace", False))
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected {', '.join(DTYPES)}, found {dtype!r}")
    job = Job(problem, coefficients, options)
    recipe = make_recipe(job, dtype)
    command = find_command(mergekit)
    if command is None:
        job.notes.append(f"{mergekit} was not found here, so the recipe was not run")
    else:
        job.prepare()
    with staged(out, replace=job.replace) as part:
        text = yaml.safe_dump(recipe, sort_keys=False)
        atomic_write(part / RECIPE, text.encode())
        error = RelativeError(float("nan"), {})
        found = Comparison(float("nan"), Scores({}, {}))
        if command is not None:
            error, found = _run_and_compare(job, command, part / RECIPE, dtype)
        exported = Exported(
            kind="mergekit",
            folder=Path(out),
            bytes=bytes_in(part),
            dtype=dtype,
            relative_error=error.overall,
            module_errors=error.by_module,
            rank=None,
            logits_difference=found.logits_difference,
            scores=found.scores,
            merge_scores=job.merge_scores if command is not None else Scores({}, {}),
            serve_at=serve_recipe,
            licences=job.licences,
            notes=tuple(job.notes),
        )
        write_card(job, exported, part)
    return exported


def serve_recipe(folder: str) -> str:
    """The command that makes the model of a recipe in a folder."""
    return shlex.join(
        ["mergekit-yaml", str(Path(folder) / RECIPE), "merged", *OPTIONS, CACHE, "adapted"]
    )


def make_recipe(job: Job, dtype: str) -> dict:
    """What mergekit reads.

    :raises ValueError: if mergekit cannot make this merge.
    """
    check_possible(job)
    problem = job.problem
    table = problem.groups.by_expert(job.coefficients)  # (n, g)
    base = _base_of(job)
    revision = revision_of(base, job.model)
    if revision is not None:
        base = f"{base}@{revision}"
    models = []
    for expert, row, used in zip(problem.experts, table.tolist(), job.used, strict=True):
        if used:
            folder = str(expert.folder.resolve())
            model = f"{base}+{folder}" if expert.checkpoint is None else folder
            weight = _weights(job, expert, row)
            models.append({"model": model, "parameters": {"weight": weight}})
    recipe: dict = {"merge_method": "task_arithmetic", "base_model": base, "models": models}
    recipe["parameters"] = {"normalize": False}
    recipe["dtype"] = "float32"
    if dtype != "float32":
        recipe["out_dtype"] = dtype
    return recipe


def check_possible(job: Job) -> None:
    """Refuse what mergekit cannot merge, or would merge into something else.

    :raises ValueError: in one sentence.
    """
    problem = job.problem
    if isinstance(problem.language_model, ImageModel):
        raise ValueError(
            "mergekit: expected a language model, found an image model; "
            "export an adapter or a model instead"
        )
    if problem.regressed:
        raise ValueError(
            "mergekit: expected adapters as their files have them, found experts regressed by "
            "RegMean, which are in no file; export an adapter or a model instead"
        )
    if problem.groups.by_channel:
        raise ValueError(
            "mergekit: expected one coefficient for each module, found one for each channel; "
            "export an adapter or a model instead"
        )
    for expert in problem.experts:
        for name, factors in expert.modules.items():
            if factors.is_parameter:
                raise ValueError(
                    f"mergekit: expected adapters of layers, found that {expert.name} changes the "
                    f"parameter {name}; export an adapter or a model instead"
                )
        found = [letter for letter in SPECIAL if letter in f"{_base_of(job)}{expert.folder}"]
        if found:
            raise ValueError(
                f"mergekit: expected paths without {SPECIAL!r}, at which mergekit splits names, "
                f"found {found[0]!r} in that of the base or of {expert.name}"
            )
    for name in problem.stacked:
        weight = weight_of(job.model, name)
        sharing = [layer for layer in job.model.modules() if getattr(layer, "weight", 0) is weight]
        if len(sharing) > 1:
            raise ValueError(
                f"mergekit: expected changes of weights that one layer has, found {name}, whose "
                "weight the output layer and the embedding share; export an adapter or a model"
            )


def find_command(mergekit: str) -> list[str] | None:
    """The command that runs a recipe, or None where mergekit is not installed."""
    beside = Path(sys.executable).parent / mergekit  # of a virtual environment that is not active
    found = shutil.which(mergekit) or (str(beside) if beside.is_file() else None)
    return None if found is None else [found]


def _base_of(job: Job) -> str:
    """The base as mergekit finds it.

    :raises ValueError: if the base has no name.
    """
    if job.loaded_by and Path(job.loaded_by).is_dir():
        return str(Path(job.loaded_by).resolve())
    if hub_id(job.loaded_by) is not None:
        return job.loaded_by
    raise ValueError(
        "mergekit: expected a base that was loaded from a folder or by a hub id, "
        f"found {job.loaded_by!r}"
    )


def _weights(job: Job, expert: Expert, row: list[float]):
    """The weight of an expert: a number, or with several groups a number for each tensor.

    :param row: its coefficient in each group.
    """
    groups = job.problem.groups
    if groups.count == 1:
        return row[0]
    by_tensor = {f"{name}.weight": name for name in expert.modules}
    if expert.checkpoint is not None:
        by_tensor = {name: module_of(name) for name in expert.checkpoint.tensors}
    weights: list[dict] = []
    for tensor, module in sorted(by_tensor.items()):
        weights.append({"filter": tensor, "value": row[groups.of_module[module]]})
    return [*weights, {"value": 0.0}]  # of all other tensors, which the expert does not change


def _run_and_compare(
    job: Job, command: list[str], recipe: Path, dtype: str
) -> tuple[RelativeError, Comparison]:
    """Have mergekit make the model, and compare what transformers loads.

    :raises ExportFailed: if mergekit fails, or makes another model.
    """
    with tempfile.TemporaryDirectory(prefix="evogm-mergekit-") as work:
        merged = Path(work) / "merged"
        options = [*OPTIONS, CACHE, str(Path(work) / "loras"), "--quiet"]
        words = [*command, str(recipe), str(merged), *options]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportFailed(f"mergekit: expected it to run the recipe, found {last}")
        loaded = load_language_model(job, merged)
        error = weight_errors(job.model, loaded.model, job.factors, job.checkpoints)
        rounding = rounding_error(job.model, job.factors, DTYPES[dtype], job.checkpoints)
        allowed = SAME + 1.1 * rounding.overall
        if not error.overall <= allowed:  # nor NaN
            raise ExportFailed(
                f"mergekit: expected the weights of the merge within {allowed:.1e}, "
                f"found a difference of {error.overall:.1e} (relative)"
            )
        return error, job.compare(loaded, error.overall)
