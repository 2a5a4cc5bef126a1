"""A merge as one LoRA adapter: exact, or with fewer channels. Both are loaded by plain peft."""

from pathlib import Path

import torch
from typing_extensions import Unpack

from evox_evogm.command.exports.exported import (
    Exported,
    ExportFailed,
    Kind,
    bytes_in,
    load_adapter,
    server_setting_of,
)
from evox_evogm.command.exports.finish import write_card
from evox_evogm.command.exports.job import Job, Options
from evox_evogm.command.exports.staging import check_free, staged
from evox_evogm.problems.adapters.adapter_dtype import (
    ROUNDING,
    dtype_name,
    resolve_adapter_dtype,
)
from evox_evogm.problems.adapters.compression import check_rank_or_tolerance, compress
from evox_evogm.problems.adapters.export import (
    difference_from_factors,
    loaded_by_peft,
    round_factors,
    write_adapter,
)
from evox_evogm.problems.adapters.factor_norms import relative_error
from evox_evogm.problems.adapters.read_adapter import Factors
from evox_evogm.problems.checkpoints.what_is_possible import check_adapters_only
from evox_evogm.problems.inference.base_model import ready_to_score
from evox_evogm.problems.inference.find_base import revision_of
from evox_evogm.problems.inference.kinds_of_base import is_encoder_decoder, task_type_of
from evox_evogm.problems.lora_merge import LoRAMergeProblem

READ = 1e-5  # relative difference of weights up to which peft read what was written


def export_adapter(
    problem: LoRAMergeProblem,
    coefficients: torch.Tensor,
    out,
    *,
    dtype: str = "float32",
    **options: Unpack[Options],
) -> Exported:
    """Write a merge as one adapter: the concatenated factors of all experts.

    :param problem: whose experts are merged.
    :param coefficients: an `(n g,)` tensor of effective coefficients, not all 0.
    :param out: the folder, new or empty.
    :param dtype: float32, in which the adapter is exact; bfloat16 or float16, in which it is
        rounded; or experts, that of the experts' files.
    :param options: see `Options`.
    :raises ValueError: if something cannot be exported, in one sentence.
    :raises ExportFailed: if plain peft loads another merge. Then nothing is left in `out`.
    """
    check_free(Path(out), replace=options.get("replace", False))
    check_adapters_only(problem.experts, "export")
    precision = resolve_adapter_dtype(dtype, problem.experts)
    job = Job(problem, coefficients, options)
    return _write(job, "adapter", job.factors, precision, Path(out))


def export_compressed(
    problem: LoRAMergeProblem,
    coefficients: torch.Tensor,
    out,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    dtype: str = "float32",
    **options: Unpack[Options],
) -> Exported:
    """Write a merge as an adapter of a lower rank, the best approximation of each module.

    :param problem: whose experts are merged.
    :param coefficients: an `(n g,)` tensor of effective coefficients, not all 0.
    :param out: the folder, new or empty.
    :param rank: the most channels of a module. Either this or `tolerance`.
    :param tolerance: the relative error of all weights together that is allowed, such as 0.05.
    :param dtype: as in `export_adapter`.
    :param options: see `Options`.
    :raises ValueError: if something cannot be exported, in one sentence.
    :raises ExportFailed: if it is farther off than it may be, or plain peft loads another adapter.
        Then nothing is left in `out`.
    """
    check_free(Path(out), replace=options.get("replace", False))
    check_rank_or_tolerance(rank, tolerance)
    check_adapters_only(problem.experts, "export")
    precision = resolve_adapter_dtype(dtype, problem.experts)
    job = Job(problem, coefficients, options)
    compressed = compress(job.factors, rank=rank, tolerance=tolerance)
    found = relative_error(round_factors(compressed.factors, precision), job.factors).overall
    allowed = (compressed.error.overall if tolerance is None else tolerance) + ROUNDING[precision]
    if not found <= allowed:  # nor NaN
        raise ExportFailed(
            f"export: expected a compressed adapter within {allowed:.2g} of the merge, found a "
            f"difference of {found:.2g} (relative)"
        )
    return _write(job, "compressed", compressed.factors, precision, Path(out))


def _write(
    job: Job, kind: Kind, factors: dict[str, Factors], dtype: torch.dtype, out: Path
) -> Exported:
    """Write factors, load them by plain peft, compare and score.

    :param factors: what is written, by module, with scale 1.
    """
    job.prepare()
    written = round_factors(factors, dtype)
    error = relative_error(written, job.factors)
    rank = max(module.a.shape[-2] for module in written.values())
    with staged(out, replace=job.replace) as part:
        task_type = task_type_of(job.model)
        write_adapter(
            factors,
            part,
            base=job.base,
            dtype=dtype,
            task_type=task_type,
            revision=revision_of(job.base, job.model),
        )
        with ready_to_score(job.model), loaded_by_peft(job.model, part):
            apart = difference_from_factors(job.model, written)
            if not apart <= READ:  # nor NaN
                raise ExportFailed(
                    "export: expected plain peft to load what was written, "
                    f"found weights that differ by {apart:.1e} (relative)"
                )
            found = job.compare(job.problem.language_model, error.overall)
        exported = Exported(
            kind=kind,
            folder=out,
            bytes=bytes_in(part),
            dtype=dtype_name(dtype),
            relative_error=max(error.overall, apart),
            module_errors=error.by_module,
            rank=rank,
            logits_difference=found.logits_difference,
            scores=found.scores,
            merge_scores=job.merge_scores,
            serve_at=load_adapter if is_encoder_decoder(job.model) else server_setting_of(rank),
            licences=job.licences,
            notes=tuple(job.notes),
        )
        write_card(job, exported, part)
    return exported
