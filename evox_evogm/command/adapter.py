"""The adapter of a run: written, checked with plain peft, and found again by its digests."""

import hashlib
from pathlib import Path

import torch

from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.adapters.adapter_dtype import (
    ROUNDING,
    dtype_name,
    resolve_adapter_dtype,
)
from evox_evogm.problems.adapters.read_adapter import CONFIG, WEIGHTS
from evox_evogm.problems.adapters.same_base import name_in_export
from evox_evogm.problems.checkpoints.full_checkpoint import has_checkpoints
from evox_evogm.problems.lora_merge import LoRAMergeProblem

ADAPTER = "adapter"


def export_merge(
    problem: LoRAMergeProblem,
    best: torch.Tensor,
    out: Path,
    settings_folder: Path,
    dtype: str = "float32",
) -> dict | None:
    """Export a merge as one adapter, and check it with plain peft.

    What goes wrong here stands in the result and does not end the run, which still has its scores.

    :param best: `(n g,)` effective coefficients.
    :param out: the run folder.
    :param settings_folder: the folder that paths in the settings are relative to.
    :param dtype: of the adapter, by its name in the settings.
    :return: what `result.json` says of the adapter, or None if all coefficients are 0, as in the
        base, or if experts are whole models: its folder and dtype, the largest relative difference
        of its weights from the merge, digests of its files, and as `error` why it cannot be used
        (None if it can).
    """
    if not bool((best != 0).any()) or has_checkpoints(problem.experts):
        return None
    folder = out / ADAPTER
    difference, error = None, None
    loaded_by = problem.language_model.model.config._name_or_path
    precision = resolve_adapter_dtype(dtype, problem.experts)
    named = [expert.base for expert in problem.experts]
    try:
        base = name_in_export(loaded_by, named, settings_folder)
        difference = problem.export(best, folder, base=base, dtype=precision)
    except Exception as raised:  # peft, safetensors and the disk have errors of their own
        error = f"{type(raised).__name__}: {sanitize(str(raised))}"
    allowed = ROUNDING[precision]
    if difference is not None and not difference <= allowed:  # nor NaN
        found = f"found weights that differ by {difference:.1e}, over {allowed} (relative)"
        error = f"expected the weights of the merge, {found}"
    return {
        "folder": ADAPTER,
        "dtype": dtype_name(precision),
        "largest_relative_difference": difference,
        "sha256": file_digests(folder),
        "error": error,
    }


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of an adapter, by their names, without those that are missing."""
    digests = {}
    for name in (CONFIG, WEIGHTS):
        path = folder / name
        if path.is_file():
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def adapter_fault(result: dict, out: Path, dtype: str | None = None) -> str | None:
    """Why the adapter of a finished run has to be made again, or None.

    :param result: what `result.json` holds.
    :param out: the run folder.
    :param dtype: that is wanted, if that matters.
    """
    adapter = result["adapter"]
    if adapter is None:
        return None
    if adapter["error"]:
        return f"it could not be used: {adapter['error']}"
    if dtype is not None and adapter.get("dtype", "float32") != dtype:
        return f"it is in {adapter.get('dtype', 'float32')}, where {dtype} is wanted"
    folder = out / adapter["folder"]
    found = file_digests(folder)
    for name, digest in adapter["sha256"].items():
        if name not in found:
            return f"{folder / name} is missing"
        if found[name] != digest:
            return f"{folder / name} is damaged or was changed"
    return None
