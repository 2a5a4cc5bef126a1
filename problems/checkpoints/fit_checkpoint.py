"""Compare a whole model with the base, weight by weight, and keep those that differ."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from evox_evogm.problems.adapters.read_adapter import Expert, describe
from evox_evogm.problems.adapters.vocabulary import compare_vocabulary
from evox_evogm.problems.checkpoints.base_weights import BaseWeights, without_prefix
from evox_evogm.problems.checkpoints.checkpoint_files import holds_same, is_finite
from evox_evogm.problems.checkpoints.compare_config import compare_config, is_tied
from evox_evogm.problems.checkpoints.full_checkpoint import COMPUTED, checkpoint_of, megabytes
from evox_evogm.problems.inference.free_memory import free_in_machine
from evox_evogm.problems.inference.panics import panics_as_errors
from evox_evogm.problems.inference.quiet_loading import without_load_report

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
OTHER_BASE = "it belongs to another base model"


def fit_checkpoint(
    expert: Expert,
    model: "PreTrainedModel",
    tokenizer,
    base: BaseWeights,
    heads: Collection[str] = (),
) -> tuple[Expert, list[str]]:
    """Keep the weights of an expert that differ from the base's.

    :param tokenizer: of the base, to compare with one in the expert's folder; or None.
    :param base: the weights of the base, of which those that experts change are kept.
    :param heads: modules that are not merged, whatever the expert has there.
    :return: the expert, and what was found that a user should know.
    :raises ValueError: one sentence saying which expert, what was found and what to do.
    """
    where = describe(expert.name, expert.folder)
    checkpoint = checkpoint_of(expert)
    different = compare_config(checkpoint.config, model, expert.folder, where)
    if tokenizer is not None:
        differing = compare_vocabulary(expert.folder, tokenizer, where).tokens
        if differing:
            raise ValueError(
                f"{where}: expected the vocabulary of the base, found a tokenizer that differs in "
                f"{differing} tokens; use the base that this model was trained from"
            )
    mapped = not is_renamed(model)
    read = _mapped_tensors if mapped else _loaded
    tensors = read(expert, model, where, heads)
    changed = _changed(tensors, base, where)
    if not changed:
        raise ValueError(
            f"{where}: expected a model that differs from the base, found the base's weights in "
            f"all {len(tensors)} tensors; leave it out"
        )
    check_memory(base.bytes_to_copy(changed), f"{where}: a copy of the base's weights", "")
    for name in changed:
        base.keep(name)
    checkpoint = replace(
        checkpoint, tensors=changed, base=base, compared=len(tensors), mapped=mapped
    )
    log.info("%s: %s", where, checkpoint.words())
    notes = []
    if different:
        notes.append(
            f"{where}: was trained with {', '.join(different)}; merges compute as the base does"
        )
    return replace(expert, checkpoint=checkpoint), notes


def note_on_memory(experts: Sequence[Expert]) -> list[str]:
    """What to tell where mapped weights are more than the memory of the machine, or nothing."""
    size = 0
    kept: dict[str, torch.Tensor] = {}
    for expert in experts:
        if expert.checkpoint is not None and expert.checkpoint.mapped:
            size += expert.checkpoint.bytes
            kept = expert.checkpoint.base.kept if expert.checkpoint.base else kept
    size += sum(tensor.nbytes for tensor in kept.values())
    available = free_in_machine()
    if size <= available:
        return []
    return [
        f"experts: full checkpoints and the weights that they change take {megabytes(size)}, and "
        f"{megabytes(available)} of memory is free: every merge reads from the disk"
    ]


def check_memory(needed: int, what: str, advice: str) -> None:
    """Refuse what the memory of the machine has no room for.

    :param needed: in bytes.
    :param what: takes it.
    :raises ValueError: with both numbers.
    """
    available = free_in_machine()
    if needed > available:
        raise ValueError(
            f"{what} takes {megabytes(needed)}, expected as much free memory, found "
            f"{megabytes(available)}{advice}"
        )


def is_renamed(model: "PreTrainedModel") -> bool:
    """Whether transformers renames or fuses the tensors of a file when it loads this model."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # of transformers 4
        return False
    return bool(get_model_conversion_mapping(model, add_legacy=False))


def _mapped_tensors(
    expert: Expert, model: "PreTrainedModel", where: str, heads: Collection[str]
) -> dict[str, torch.Tensor]:
    """The tensors of an expert's files by the names that the base has for them.

    :raises ValueError: if one is missing, has no place, or has another shape.
    """
    checkpoint = checkpoint_of(expert)
    stored = checkpoint.files.stored
    used: set[str] = set()
    found: dict[str, str] = {}
    missing = []
    for names in names_of_parameters(model).values():
        if is_of(names[0], heads):
            continue
        keys = []
        for name in names:
            keys += [key for key in (name, without_prefix(name, model)) if key in stored]
        keys = list(dict.fromkeys(keys))
        used.update(keys)
        if not keys:
            missing.append(names[0])
            continue
        found[names[0]] = keys[0]
        _check_alike({key: checkpoint.files.tensor(key) for key in keys}, where)
    missing = _without_tied(missing, found, expert, model)
    more = []
    for name in stored:
        if not (name in used or _is_ignored(name, model) or is_of(name, heads)):
            more.append(name)
    _check_names(missing, more, where)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    for name, key in found.items():
        _check_shape(name, stored[key].shape, shapes[name], where)
    return {name: checkpoint.files.tensor(key) for name, key in found.items()}


def names_of_parameters(model: torch.nn.Module) -> dict[int, list[str]]:
    """All names of each weight, by its id: an output layer may share that of the embedding."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _check_alike(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse different tensors, by their names, for what is one weight in the base."""
    first, *others = tensors
    for other in others:
        if not torch.equal(tensors[first], tensors[other]):
            raise ValueError(
                f"{where}: expected an output layer that shares its weight with the embedding, as "
                f"in the base, found different weights in {first} and {other}; load the base "
                "with tie_word_embeddings false"
            )


def _check_shape(name: str, found: Sequence[int], expected: Sequence[int], where: str) -> None:
    """Refuse a tensor of another shape than the base's."""
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"{where}: expected the shape {tuple(expected)} in {name}, found {tuple(found)}; "
            f"{OTHER_BASE}"
        )


def _without_tied(
    missing: list[str], found: dict[str, str], expert: Expert, model: "PreTrainedModel"
) -> list[str]:
    """What is missing, without an output layer that the expert's embedding stands for."""
    if not missing:  # some image models have no embeddings to ask for
        return missing
    names = {id(weight): name for name, weight in model.named_parameters()}
    output = names.get(id(getattr(model.get_output_embeddings(), "weight", None)))
    embedding = names.get(id(getattr(model.get_input_embeddings(), "weight", None)))
    if output in missing and embedding in found and is_tied(checkpoint_of(expert).config):
        assert output is not None and embedding is not None
        found[output] = found[embedding]
        return [name for name in missing if name != output]
    return missing


def _is_ignored(name: str, model: "PreTrainedModel") -> bool:
    """Whether a tensor in a file is none of the model's weights, and does no harm."""
    buffers = {buffer for buffer, _ in model.named_buffers()}
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    unread = any(re.search(pattern, name) for pattern in patterns)  # by transformers too
    return name in buffers or name.endswith(COMPUTED) or unread


def _check_names(missing: Sequence[str], more: Sequence[str], where: str) -> None:
    """Refuse a model that lacks weights of the base, or has others.

    :raises ValueError: naming the first of each.
    """
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing, as {missing[0]}")
    if more:
        faults.append(f"{len(more)} that the base does not have, as {more[0]}")
    if faults:
        raise ValueError(
            f"{where}: expected the tensors of the base, found {' and '.join(faults)}; {OTHER_BASE}"
        )


def _loaded(
    expert: Expert, model: "PreTrainedModel", where: str, heads: Collection[str]
) -> dict[str, torch.Tensor]:
    """The weights of an expert as transformers loads them, in memory.

    :raises ValueError: if they do not fit into memory, or are not those of the base's class.
    """
    files = checkpoint_of(expert).files
    advice = "; merge fewer models at a time"
    check_memory(files.bytes, f"{where}: reading a model whose tensors are renamed", advice)
    kind: Any = type(model)
    options = {"dtype": "auto", "use_safetensors": True, "output_loading_info": True}
    try:
        with panics_as_errors(), without_load_report():
            loaded, info = kind.from_pretrained(
                expert.folder, ignore_mismatched_sizes=True, **options
            )
    except Exception as error:  # each part that reads raises its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{where}: expected a model that transformers loads, found {reason}"
        ) from error
    for name, found, expected in sorted(info["mismatched_keys"]):
        if not is_of(name, heads):
            _check_shape(name, found, expected, where)
    own = dict(loaded.named_parameters(remove_duplicate=False))  # also a tied output layer
    names = list(names_of_parameters(model).values())
    missing = set(info["missing_keys"]) | {first for first, *_ in names if first not in own}
    _check_names(_others(missing, heads), _others(info["unexpected_keys"], heads), where)
    tensors = {}
    for aliases in names:
        if is_of(aliases[0], heads):
            continue
        _check_alike({name: own[name] for name in aliases if name in own}, where)
        first = aliases[0]
        _check_shape(first, own[first].shape, model.get_parameter(first).shape, where)
        tensors[first] = own[first].detach()
    return tensors


def is_of(name: str, heads: Collection[str]) -> bool:
    """Whether a tensor belongs to a module that is not merged."""
    return any(name.startswith(f"{head}.") for head in heads)


def _others(names: Collection[str], heads: Collection[str]) -> list[str]:
    """The names of tensors that belong to none of some modules, in order."""
    return sorted(name for name in names if not is_of(name, heads))


def _changed(
    tensors: Mapping[str, torch.Tensor], base: BaseWeights, where: str
) -> dict[str, torch.Tensor]:
    """The tensors that differ from the base's, which is compared in the dtype of the expert.

    :raises ValueError: if one of them is not finite.
    """
    changed = {}
    for name, tensor in tensors.items():
        if holds_same(tensor, base.current(name)):
            continue
        if not is_finite(tensor):
            raise ValueError(
                f"{where}: expected finite weights, found NaN or infinity in {name}; "
                "use an earlier checkpoint"
            )
        changed[name] = tensor
    return changed
