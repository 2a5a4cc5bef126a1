"""Refuse a base that is no plain language model, or whose weights are not all in its files.

transformers fills missing weights with random numbers, leaves out tensors that it has no place for,
and loads an adapter that lies beside a model. It says so in its log at most.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

ADAPTER_CONFIG = "adapter_config.json"
NAMES_SHOWN = 3
# What wrappers put before the names of a model's tensors, and how to save a model without it.
PREFIXES = {
    "_orig_mod.": "save the model inside torch.compile's wrapper, `compiled._orig_mod`",
    "module.": "save the model inside DistributedDataParallel, `wrapped.module`",
    "base_model.model.": "save what PeftModel's `merge_and_unload()` or `unload()` returns",
    "_fsdp_wrapped_module.": "save the full state dict of the model inside FSDP",
}


def check_folder(base: str | Path) -> None:
    """Refuse a folder with an adapter, which transformers would load together with its base.

    :param base: a folder, or anything else that names a base.
    :raises ValueError: saying what to do.
    """
    folder = Path(base)
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    if (folder / "config.json").is_file():
        raise ValueError(
            f"base: expected a model alone, found an adapter ({ADAPTER_CONFIG}) beside it in "
            f"{str(base)!r}, which transformers would add to it; move the adapter elsewhere"
        )
    raise ValueError(
        f"base: expected a model, found an adapter in {str(base)!r}; give the base model that it "
        "was trained on"
    )


def check_config(config, base) -> None:
    """Refuse an encoder-decoder that does not read and write texts.

    :param base: named in the error.
    :raises ValueError: saying what was found.
    """
    from transformers import AutoModelForSeq2SeqLM

    is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
    if is_encoder_decoder and type(config) not in AutoModelForSeq2SeqLM._model_mapping:
        raise ValueError(
            f"base: expected a causal language model or an encoder-decoder of texts such as T5, "
            f"found {str(base)!r} with the encoder-decoder {config.model_type!r}"
        )


def check_loaded_whole(info: Mapping[str, Collection], config, base) -> None:
    """Refuse a model of which some weights were not in its files, or some tensors had no place.

    :param info: transformers' loading info. Tied weights and tensors that the model's class
        declares harmless are not in it.
    :param config: of the model, which names the class that was saved.
    :param base: named in the error.
    :raises ValueError: saying what to do.
    """
    missing = sorted(info["missing_keys"])
    missing += sorted(str(entry[0]) for entry in info["mismatched_keys"])
    unexpected = sorted(info["unexpected_keys"])
    errors = list(info["error_msgs"])
    if not (missing or unexpected or errors):
        return
    found = []
    if missing:
        found.append(f"{len(missing)} missing ({_some(missing)})")
    if unexpected:
        count = f"{len(unexpected)} tensor{'s' if len(unexpected) > 1 else ''}"
        found.append(f"{count} without a place in it ({_some(unexpected)})")
    found += [" ".join(error.split()) for error in errors[:1]]
    raise ValueError(
        f"base: expected all weights of a language model in {str(base)!r}, "
        f"found {' and '.join(found)}; {_remedy(missing, unexpected, config)}"
    )


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _remedy(missing: Sequence[str], unexpected: Sequence[str], config) -> str:
    """What to do about a checkpoint that does not fit its model."""
    for prefix, remedy in PREFIXES.items():
        if any(prefix in f".{name}" for name in unexpected):
            return remedy
    saved_as = (getattr(config, "architectures", None) or [""])[0] or ""
    if saved_as and not saved_as.endswith(("CausalLM", "LMHeadModel", "ConditionalGeneration")):
        return f"the folder holds a {saved_as}; give the causal language model"
    if missing and not unexpected:
        return "download it again, or save the whole model with AutoModelForCausalLM"
    return "download it again, or save it with the transformers class of its config.json"


def check_model(model: torch.nn.Module) -> None:
    """Refuse a loaded model that is wrapped, incomplete, or no causal language model.

    :raises ValueError: saying what was found and what to give instead.
    """
    check_wrappers(model)
    kind = type(model).__name__
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        check_config(config, kind)
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    if config is None or outputs is None:
        raise ValueError(
            "base: expected a transformers causal language model, found "
            f"{kind} without an output layer over tokens; load it with AutoModelForCausalLM"
        )
    check_in_memory(model)


def check_in_memory(model: torch.nn.Module) -> None:
    """Refuse a model whose weights are not all in memory, or on devices that nothing connects.

    :raises ValueError: saying where they are.
    """
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if any(device.type == "meta" for device in devices):
        raise ValueError(
            "base: expected all weights in memory, found some offloaded to the CPU or disk; "
            "load it without device_map, with another dtype or quantized if it is too large"
        )
    if len(devices) > 1 and not is_dispatched(model):
        names = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(
            f"base: expected all weights on one device, found them on {names}; load it on one, or "
            "with a device_map of transformers, whose hooks move what layers read"
        )


def is_dispatched(model: torch.nn.Module) -> bool:
    """Whether accelerate moves what the layers of a model read to their devices."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def check_wrappers(model: torch.nn.Module) -> None:
    """Refuse a model inside torch.compile, a data-parallel wrapper or peft."""
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            f"base: expected a plain model, found torch.compile's {kind}, which would not see "
            "merged weights; give compiled._orig_mod"
        )
    if isinstance(getattr(model, "module", None), torch.nn.Module):
        raise ValueError(f"base: expected a plain model, found {kind}; give its .module")
    from peft import PeftMixedModel, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, (PeftModel, PeftMixedModel)):
        raise ValueError(
            f"base: expected a plain model, found peft's {kind}; give what its unload() returns, "
            "or merge_and_unload() to keep the adapter in the weights"
        )
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            raise ValueError(
                f"base: expected a plain model, found an adapter of peft in {name}; "
                "give the model without it"
            )
