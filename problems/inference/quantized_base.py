"""Bases whose weights are quantized: by bitsandbytes when they are loaded, or as others saved them.

Experts are added by hooks, and stay in floating point. So the base takes a half or a quarter of the
memory, and all scores are those of the quantized base. An exported adapter is the same as without.
"""

from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

Quantization = Literal["8bit", "4bit"]


def check_quantization(quantization: Quantization | None, base, *, images: bool) -> None:
    """Refuse to quantize what cannot be, before anything is loaded.

    :param base: as `LoRAMergeProblem` takes it.
    :param images: whether it is an image model.
    :raises ValueError: in one sentence.
    """
    if quantization is None:
        return
    known = get_args(Quantization)
    if quantization not in known:
        expected = f"expected one of {', '.join(known)} or nothing"
        raise ValueError(f"quantization: {expected}, found {quantization!r}")
    if images:
        raise ValueError(
            "quantization: expected a language model as base, found tasks of images; leave it out"
        )
    if isinstance(base, torch.nn.Module):
        raise ValueError(
            "quantization: expected a base that is loaded here, found a loaded model; load it with "
            "transformers' BitsAndBytesConfig, or give its name"
        )
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantization: expected the package bitsandbytes for {quantization}, found that it is "
            "not installed: pip install bitsandbytes"
        )


def options_of(
    quantization: Quantization | None, config, dtype: torch.dtype, device: torch.device, base
) -> dict[str, Any]:
    """What `from_pretrained` needs to quantize a base.

    :param config: of the base.
    :param dtype: that products are computed in.
    :param device: of the weights.
    :param base: named in the error.
    :raises ValueError: if the base is quantized already.
    """
    from transformers import BitsAndBytesConfig

    if quantization is None:
        return {}
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"quantization: expected a base in floating point for {quantization}, found that "
            f"{str(base)!r} is quantized already; leave quantization out"
        )
    if quantization == "8bit":
        # A threshold would keep columns of outliers in half precision, those of a whole batch, and
        # scores would depend on what shares it.
        found = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        found = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return {"quantization_config": found, "device_map": {"": device}}


def keep_as_loaded(model: torch.nn.Module) -> None:
    """Have layers of 4 bits on the CPU compute with their weights as they are.

    bitsandbytes would pack them for some processors at the first pass. Layers that peft has wrapped
    and given back forget that, and pack them again, which leaves other weights.
    """
    layer: Any  # torch's modules declare no such attribute
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def quantized_as(model: torch.nn.Module) -> str | None:
    """How the weights of a base are quantized, such as 4bit or gptq; None if they are not."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return None
    table: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    if table.get("load_in_8bit"):
        return "8bit"
    if table.get("load_in_4bit"):
        return "4bit"
    method = table.get("quant_method", "")
    return str(getattr(method, "value", method)) or "a kind without a name"


def note_on_quantized(model: torch.nn.Module) -> list[str]:
    """A sentence on what the scores of a quantized base are, or none."""
    found = quantized_as(model)
    if found is None:
        return []
    return [
        f"the base is quantized ({found}): all scores are those of the quantized base. An exported "
        "adapter is for the base as it is in its files, on which scores differ"
    ]
