"""The frozen image model whose experts are merged."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from evox_evogm.problems.adapters.read_adapter import Expert, describe
from evox_evogm.problems.images.heads import CLASSIFIER
from evox_evogm.problems.inference.base_model import (
    default_dtype,
    read_base_config,
    refusing_what_cannot_be_read,
)
from evox_evogm.problems.inference.check_base import check_in_memory, check_wrappers
from evox_evogm.problems.inference.find_base import find_base
from evox_evogm.problems.inference.quiet_loading import without_load_report

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PIXELS = "pixel_values"  # what transformers calls the input of image models


def load_image_model(
    base,
    experts: Sequence[Expert],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """The base, by the arguments of `LoRAMergeProblem`.

    :param base: a folder, a hub id, or a loaded model.
    :param experts: as they were read. They were trained on the model with a classifier if their
        modules have its names, as `vit.layers.0...`, else on the backbone alone.
    :raises ValueError: if it cannot be read or is no image model, in one sentence.
    """
    if isinstance(base, torch.nn.Module):
        check_image_model(base)
        return cast("PreTrainedModel", base if device is None else base.to(device))
    device = torch.get_default_device() if device is None else torch.device(device)
    dtype = default_dtype(device) if dtype is None else dtype
    model = _load(base, experts, dtype, trust_remote_code)
    check_image_model(model)
    model.to(device)  # type: ignore[arg-type]
    return model.requires_grad_(False).eval()


def _load(
    base, experts: Sequence[Expert], dtype: torch.dtype, trust_remote_code: bool
) -> "PreTrainedModel":
    """Load a base, with a classifier if the experts were trained so.

    Of a model of images and texts, such as CLIP, the part that reads images is loaded.
    """
    from transformers import AutoModel, AutoModelForImageClassification

    found = find_base(base)
    config, options = read_base_config(base, found, trust_remote_code)
    source, _ = found
    kind: Any = AutoModel
    mapping: Any = AutoModelForImageClassification._model_mapping
    of_images = vision_class(config)
    if of_images is not None:
        kind = of_images
    elif type(config) in mapping:
        classes = mapping[type(config)]
        first = classes[0] if isinstance(classes, tuple) else classes
        if has_prefix(experts, first.base_model_prefix):
            kind = AutoModelForImageClassification
    with refusing_what_cannot_be_read(base), without_load_report():
        # use_safetensors: a pickle runs code when it is read.
        loaded: Any = kind.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    model, info = loaded
    missing = sorted(name for name in info["missing_keys"] if not _is_of_head(name))
    missing += sorted(str(entry[0]) for entry in info["mismatched_keys"])
    if missing:
        raise ValueError(
            f"base: expected all weights of {type(model).__name__} in {str(base)!r}, found "
            f"{len(missing)} missing ({', '.join(missing[:3])}); give the model that the experts "
            "were trained on"
        )
    found.mark(model)
    return model


def vision_class(config) -> Any | None:
    """The class that loads the image part of a model of images and texts; None of other models."""
    from transformers import AutoModel

    mapping: Any = AutoModel._model_mapping
    part = type(getattr(config, "vision_config", None))
    if not hasattr(config, "text_config") or part not in mapping:
        return None
    found = mapping[part]
    return found if getattr(found, "main_input_name", None) == PIXELS else None


def is_image_config(config) -> bool | None:
    """Whether a configuration is that of an image model; None where it may be both or neither.

    A model of images and texts that writes texts, such as Gemma 3, is both.
    """
    import transformers as hf

    mapping: Any = hf.AutoModel._model_mapping
    of_images = vision_class(config) is not None
    if type(config) in mapping and not of_images:
        classes = mapping[type(config)]
        first = classes[0] if isinstance(classes, tuple) else classes
        of_images = getattr(first, "main_input_name", None) == PIXELS
    of_texts = False
    writers = (hf.AutoModelForCausalLM, hf.AutoModelForSeq2SeqLM, hf.AutoModelForImageTextToText)
    for auto in writers:
        texts: Any = auto._model_mapping
        of_texts = of_texts or type(config) in texts
    return None if of_images == of_texts else of_images


def _is_of_head(name: str) -> bool:
    """Whether a tensor is one of the classifier, in whose place every task has its own head."""
    return name.startswith(f"{CLASSIFIER}.")


def has_prefix(experts: Sequence[Expert], prefix: str) -> bool:
    """Whether the modules of adapters are named as in a model with a classifier."""
    for expert in experts:
        if any(not name.startswith(f"{prefix}.") for name in expert.modules):
            return False
    return True


def check_image_model(model: torch.nn.Module) -> None:
    """Refuse a loaded model that is wrapped, incomplete, or reads no images.

    :raises ValueError: saying what was found.
    """
    check_wrappers(model)
    found = type(model).__name__
    if getattr(model, "main_input_name", None) != PIXELS or not hasattr(model, "config"):
        raise ValueError(
            f"base: expected a transformers model of images for tasks of images, found {found}; "
            "load it with AutoModelForImageClassification or AutoModel"
        )
    check_in_memory(model)


def check_images_possible(experts: Sequence[Expert], regmean) -> None:
    """Refuse what experts of image models cannot be asked for, before the base is loaded.

    :param regmean: what experts are regressed on, None if they are not.
    :raises ValueError: in one sentence.
    """
    if regmean not in (None, "weights"):
        raise ValueError(
            'regmean: expected None or "weights" with tasks of images, found one that reads prompts'
        )
    for expert in experts:
        check_no_factors_of_head(expert)


def check_no_factors_of_head(expert: Expert) -> None:
    """Refuse an adapter with factors of the classifier, which is not merged.

    :raises ValueError: saying which.
    """
    if CLASSIFIER in expert.modules:
        raise ValueError(
            f"{describe(expert.name, expert.folder)}: expected no factors of the {CLASSIFIER}, in "
            f"whose place every task has its head, found some; train it with modules_to_save="
            f'["{CLASSIFIER}"]'
        )
