"""A merge as a whole model: transformers, and every server, loads it without peft."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from evox_evogm.command.exports.exported import Exported, ExportFailed, bytes_in
from evox_evogm.command.exports.finish import write_card
from evox_evogm.command.exports.job import Job, Options
from evox_evogm.command.exports.staging import check_free, staged
from evox_evogm.problems.adapters.adapter_dtype import DTYPES, dtype_name
from evox_evogm.problems.adapters.factor_norms import RelativeError
from evox_evogm.problems.adapters.merged_model import (
    copy_with_merge,
    rounding_error,
    weight_errors,
)
from evox_evogm.problems.images.image_exports import auto_name, load_exported, save_processor
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.inference.base_model import tokenizer_sha256, weights_sha256
from evox_evogm.problems.inference.kinds_of_base import (
    auto_class,
    is_encoder_decoder,
    make_language_model,
)
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.quantized_base import quantized_as
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.texts import reading_texts, reads_texts
from evox_evogm.problems.lora_merge import LoRAMergeProblem

BASE = "base"
SAME = 1e-3  # relative difference of weights, beside rounding, that other orders of sums make


def export_full_model(
    problem: LoRAMergeProblem,
    coefficients: torch.Tensor,
    out,
    *,
    dtype: str = BASE,
    max_shard_size: str = "5GB",
    **options: Unpack[Options],
) -> Exported:
    """Write a whole model: weights in safetensors, tokenizer, configuration, generation settings.

    :param problem: whose experts are merged.
    :param coefficients: an `(n g,)` tensor of effective coefficients, not all 0.
    :param out: the folder, new or empty.
    :param dtype: of the weights: base for that of the loaded base, float32, bfloat16 or float16.
    :param max_shard_size: of a weight file, as transformers takes it.
    :param options: see `Options`.
    :raises ValueError: if something cannot be exported, in one sentence.
    :raises ExportFailed: if transformers loads another model. Then nothing is left in `out`.
    """
    check_free(Path(out), replace=options.get("replace", False))
    if dtype != BASE and dtype not in DTYPES:
        raise ValueError(f"dtype: expected {BASE}, {', '.join(DTYPES)}, found {dtype!r}")
    job = Job(problem, coefficients, options)
    quantized = quantized_as(job.model)
    if quantized is not None:
        raise ValueError(
            "export: expected a base in floating point for a whole model, found a quantized one "
            f"({quantized}); export the adapter and merge it into the base as it is by plain peft "
            "(merge_and_unload)"
        )
    precision = job.model.dtype if dtype == BASE else DTYPES[dtype]
    _note_precision(job, precision)
    job.prepare()
    with staged(out, replace=job.replace) as part:
        loaded = _save_and_load(job, precision, max_shard_size, part)
        parts = job.factors, job.checkpoints
        error = weight_errors(job.model, loaded.model, *parts)
        check_weights(error, rounding_error(job.model, job.factors, precision, job.checkpoints))
        found = job.compare(loaded, error.overall)
        exported = Exported(
            kind="model",
            folder=Path(out),
            bytes=bytes_in(part),
            dtype=dtype_name(precision),
            relative_error=error.overall,
            module_errors=error.by_module,
            rank=None,
            logits_difference=found.logits_difference,
            scores=found.scores,
            merge_scores=job.merge_scores,
            serve_at=serve_at(job),
            licences=job.licences,
            notes=tuple(job.notes),
        )
        write_card(job, exported, part)
    return exported


def serve_at(job: Job) -> Callable[[str], str]:
    """What serves or loads the model, by its folder."""
    if isinstance(job.problem.language_model, ImageModel):
        name = auto_name(job.model)
        return lambda folder: f"{name}.from_pretrained({folder!r})"
    return load_model if is_encoder_decoder(job.model) else serve_model


def serve_model(folder: str) -> str:
    """The command that serves a model in a folder."""
    return f"vllm serve {shlex.quote(folder)}"


def load_model(folder: str) -> str:
    """How transformers loads an encoder-decoder, which vLLM may not serve."""
    return f"AutoModelForSeq2SeqLM.from_pretrained({folder!r})"


def check_weights(error: RelativeError, rounding: RelativeError) -> None:
    """Refuse weights that are not those of the merge, rounded.

    Each module by itself: of many, one that lacks what the merge adds is lost in the rounding of
    all others.

    :param error: of the loaded weights.
    :param rounding: what rounding alone costs.
    :raises ExportFailed: naming the module that is farthest off.
    """
    beyond = {}
    for name, apart in error.by_module.items():
        beyond[name] = apart - SAME - 1.1 * rounding.by_module[name]
    wrong = [name for name, over in beyond.items() if not over <= 0]  # nor NaN
    if wrong:
        name = max(wrong, key=beyond.__getitem__)
        raise ExportFailed(
            f"export: expected the weights of the merge in {name}, of which rounding costs "
            f"{rounding.by_module[name]:.1e}, found a difference of {error.by_module[name]:.1e} "
            "(relative)"
        )


def _save_and_load(job: Job, dtype: torch.dtype, max_shard_size: str, part: Path) -> ScoredModel:
    """Write the model with its tokenizer or image processor, and load it by transformers alone.

    :raises ExportFailed: if other weights or another tokenizer are read than were written.
    """
    merged = copy_with_merge(job.model, job.factors, dtype, job.checkpoints)
    written = weights_sha256(merged)
    merged.save_pretrained(part, max_shard_size=max_shard_size)
    del merged  # so that only the base and one more model are held at a time
    own = job.problem.language_model
    loaded: ScoredModel
    if isinstance(own, ImageModel):
        save_processor(job.loaded_by, part)
        loaded = load_exported(own, part)
    else:
        reading_texts(own).tokenizer.save_pretrained(part)
        loaded = load_language_model(job, part)
    if weights_sha256(loaded.model) != written:
        raise ExportFailed(
            "export: expected transformers to load the weights that were written, found others"
        )
    if not (reads_texts(own) and reads_texts(loaded)):
        return loaded
    if tokenizer_sha256(loaded.tokenizer) != tokenizer_sha256(own.tokenizer):
        raise ExportFailed("export: expected the tokenizer of the base to be loaded, found another")
    return loaded


def load_language_model(job: Job, folder: Path) -> LanguageModel:
    """A model that transformers loads from a folder, in the dtype of its file, where the base is.

    It scores in the same batches as the base does.
    """
    from transformers import AutoTokenizer

    own = reading_texts(job.problem.language_model)
    # The base brought code of its own, and its user has said that it may run.
    trusted = type(own.model).__module__.startswith("transformers_modules")
    options = {"dtype": "auto", "use_safetensors": True, "trust_remote_code": trusted}
    loaded: Any = auto_class(own.model.config).from_pretrained(folder, **options)
    loaded.to(own.device)
    return make_language_model(
        loaded.requires_grad_(False).eval(),
        AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted),
        batch_tokens=own.batch_sizes,
        max_memory=own.max_memory,
        capabilities=own.capabilities,
        chat_template=own.prompts.chat_template.arguments,
    )


def _note_precision(job: Job, dtype: torch.dtype) -> None:
    """Say so where the base was loaded in less than the model is written in."""
    if job.model.dtype.itemsize < dtype.itemsize:
        loaded = dtype_name(job.model.dtype)
        job.notes.append(
            f"the base was loaded in {loaded}: in {dtype_name(dtype)} the merge is added to "
            f"weights rounded to {loaded}"
        )
