"""The base and the experts of a problem: read, and checked to fit together."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from evox_evogm.problems.adapters.check_fit import fit_experts
from evox_evogm.problems.adapters.notes_on_experts import notes_on_experts
from evox_evogm.problems.adapters.read_adapter import Expert
from evox_evogm.problems.checkpoints.read_experts import read_experts
from evox_evogm.problems.checkpoints.what_is_possible import (
    check_possible,
    check_possible_if_quantized,
)
from evox_evogm.problems.images.heads import HEADS
from evox_evogm.problems.inference.base_model import DeviceMap
from evox_evogm.problems.inference.quantized_base import Quantization, note_on_quantized
from evox_evogm.problems.scored_models import load_any_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class BaseAndExperts(NamedTuple):
    """A base, and experts that fit it.

    :param model: the base.
    :param tokenizer: of the base; None where it reads images.
    :param experts: n of them, with the names of modules that the base has.
    :param notes: sentences about what was taken for the same although it differs, and about odd
        experts.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase | None"
    experts: list[Expert]
    notes: list[str]


def load_base_and_experts(
    base,
    experts: Sequence | Mapping,
    *,
    images: bool,
    modes: Mapping[str, str],
    objectives: str,
    regmean,
    tokenizer,
    dtype: torch.dtype | None,
    quantization: Quantization | None,
    device_map: DeviceMap,
    device: torch.device | str | None,
    same_base: bool,
    trust_remote_code: bool,
) -> BaseAndExperts:
    """Read the experts, load the base, and check that they fit together.

    All parameters but two are arguments of `LoRAMergeProblem`.

    :param images: whether tasks are of images.
    :param modes: of tasks that have one, by name.
    :raises ValueError: if something cannot be read or does not fit, in one sentence.
    """
    heads = HEADS if images else ()
    read = read_experts(experts, heads=heads)
    check_possible(read, modes, objectives, regmean)
    model, tokenizer = load_any_base(
        base,
        read,
        regmean,
        images=images,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        quantization=quantization,
        device_map=device_map,
    )
    check_possible_if_quantized(model, read, modes)
    fit = fit_experts(read, model, tokenizer, same_base=same_base, heads=heads)
    notes = list(fit.notes)
    notes += notes_on_experts(fit.experts, tokenizer)
    notes += note_on_quantized(model)
    return BaseAndExperts(model, tokenizer, fit.experts, notes)
