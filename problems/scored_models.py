"""The base of a problem, of texts or of images, and the model that scores its merges."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from evox_evogm.problems.adapters.read_adapter import Expert
from evox_evogm.problems.checkpoints.what_is_possible import first_checkpoint
from evox_evogm.problems.images.image_base import check_images_possible, load_image_model
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.inference.base_model import DeviceMap, load_model
from evox_evogm.problems.inference.batch_sizes import BatchSizes, is_to_be_measured
from evox_evogm.problems.inference.chat_template import (
    with_chat_template,
    with_date,
    writes_the_date,
)
from evox_evogm.problems.inference.kinds_of_base import is_encoder_decoder, make_language_model
from evox_evogm.problems.inference.quantized_base import Quantization, check_quantization
from evox_evogm.problems.inference.scored_model import ScoredModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BatchTokens = int | BatchSizes | Literal["auto"] | None


def load_any_base(
    base,
    experts: Sequence[Expert],
    regmean,
    *,
    images: bool,
    tokenizer,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    trust_remote_code: bool,
    quantization: Quantization | None = None,
    device_map: DeviceMap = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase | None]":
    """The base, and its tokenizer if it reads texts, by the arguments of `LoRAMergeProblem`.

    :param experts: as they were read.
    :param images: whether tasks are of images.
    :raises ValueError: if it cannot be read or used, in one sentence.
    """
    check_quantization(quantization, base, images=images)
    check_device_map(device_map, base, experts, images=images)
    if not images:
        return load_model(
            base, tokenizer, dtype, device, trust_remote_code, quantization, device_map
        )
    check_images_possible(experts, regmean)
    return load_image_model(base, experts, dtype, device, trust_remote_code), None


def check_device_map(
    device_map: DeviceMap, base, experts: Sequence[Expert], *, images: bool
) -> None:
    """Refuse to spread over devices what has to be on one, before anything is loaded.

    :param device_map: as transformers takes it.
    :param base: as `LoRAMergeProblem` takes it.
    :param experts: as they were read.
    :param images: whether it is an image model.
    :raises ValueError: in one sentence.
    """
    if device_map is None:
        return
    found = None
    whole = first_checkpoint(experts)
    if isinstance(base, torch.nn.Module):
        found = "a loaded model, which stays where it is"
    elif images:
        found = "an image model"
    elif whole is not None:
        found = f"the full checkpoint {whole.name!r} among the experts"
    if found is not None:
        raise ValueError(
            "device_map: expected a language model that is loaded here, and adapters as experts, "
            f"found {found}; leave it out"
        )


def make_scored_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    batch_tokens: BatchTokens,
    max_memory: int,
    chat_template: Mapping | None,
    chat_date: datetime.date | None,
) -> ScoredModel:
    """What scores merges of a base.

    :param tokenizer: as `chat_tokenizer` gives it; None for a base that reads images.
    :param max_memory: bytes that a forward pass may take.
    :param chat_template: arguments for the chat template.
    :param chat_date: that the chat template writes; None if it writes none.
    """
    if tokenizer is None:
        return ImageModel(model, batch_tokens=batch_tokens, max_memory=max_memory)
    if batch_tokens is None or batch_tokens == "auto":
        batch_tokens = BatchSizes()
    return make_language_model(
        model,
        tokenizer,
        batch_tokens=batch_tokens,
        max_memory=max_memory,
        chat_template=with_date(chat_template, chat_date),
    )


def chat_tokenizer(
    tokenizer: Any, template_file: str | Path | None, date: datetime.date | None
) -> tuple[Any, datetime.date | None]:
    """The tokenizer with the chat template that is wanted, and the date that it writes.

    :param tokenizer: None for a base that reads images, which is then what is returned.
    :param date: that is wanted. Defaults to today.
    :return: None as the date where the template writes none.
    """
    if tokenizer is None:
        return None, None
    tokenizer = with_chat_template(tokenizer, template_file)
    if not writes_the_date(tokenizer):
        return tokenizer, None
    return tokenizer, date or datetime.date.today()


def measures_batches(batch_tokens: BatchTokens, model: "PreTrainedModel", images: bool) -> bool:
    """Whether the sizes of batches are to be measured before the first scores.

    :param images: whether tasks are of images, of which nothing is measured.
    """
    wanted = is_to_be_measured(batch_tokens, model.device)
    return wanted and not is_encoder_decoder(model) and not images
