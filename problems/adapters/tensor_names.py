"""The names of tensors in an adapter's file: as peft writes them, and as other tools leave them.

peft writes `base_model.model.MODULE.lora_A.weight`. Some tools put the name of the adapter in, or
the names of what a model was wrapped in when it was saved. peft reads the former, not the latter.
"""

import re
from collections.abc import Iterable

PREFIX = "base_model.model."
# In its place the adapter's name may stand, as in `lora_A.default.weight`.
FACTOR_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])"
    r"(\.(?!weight$)(?P<adapter>[^.]+))?(\.weight)?"
)
# peft saves the frozen weights of embeddings and output layers that an adapter targets, and those
# of a vocabulary that was resized. An output layer may have a bias.
COPY_NAME = re.compile(
    r"base_model\.model\.(?!.*\.lora_)(?P<layer>.+?)(\.base_layer)?"
    r"(\.weight|(?<=\.base_layer)(?P<bias>\.bias))"
)
BIAS = ".bias"  # behind the name of a layer whose bias is copied
UNWRAPPED = "plain peft does not load it: save the model without its wrapper"
# Parts of names that wrappers add, with where they come from.
WRAPPERS = {
    "_orig_mod": f"from a model compiled by torch.compile; {UNWRAPPED}",
    "_fsdp_wrapped_module": f"from a model wrapped by FSDP; {UNWRAPPED}",
    "_checkpoint_wrapped_module": f"from a model wrapped for activation checkpoints; {UNWRAPPED}",
    "_forward_module": f"from a model wrapped by Lightning; {UNWRAPPED}",
    "module": f"from a model wrapped by DistributedDataParallel or DeepSpeed; {UNWRAPPED}",
}
NESTED = "from a PeftModel inside a PeftModel; plain peft does not load it: wrap the base only once"
MLX = "from MLX, whose factors are transposed; convert the adapter to the format of peft"
NO_PREFIX = f"without the {PREFIX!r} that peft begins with; save the adapter by peft"
PLAIN_LORA = "which is neither; save the adapter as plain LoRA"
SHARDED = (
    "a shard of DeepSpeed ZeRO-3 or FSDP, saved without the others; "
    "gather the parameters and save the adapter again"
)


def explain_key(key: str) -> str:
    """What a tensor's name comes from that is none of a factor, and what to do.

    :param key: the name, as the file has it.
    """
    wrapper = _find_wrapper(key)
    if wrapper is not None:
        return WRAPPERS[wrapper]
    if re.search(r"\.lora_[ab]$", key):
        return MLX
    if ".lora_" in key and not key.startswith(PREFIX):
        return NO_PREFIX
    return PLAIN_LORA


def explain_module(module: str) -> str | None:
    """What a module's name comes from that the base does not have, or None if it is a plain one."""
    if module.startswith(PREFIX):
        return NESTED
    wrapper = _find_wrapper(module)
    return None if wrapper is None else WRAPPERS[wrapper]


def _find_wrapper(name: str) -> str | None:
    parts = name.split(".")
    for wrapper in WRAPPERS:
        if wrapper in parts:
            return wrapper
    return None


def check_one_adapter(names: Iterable[str], where: str) -> None:
    """Refuse a file in which the tensors carry the names of several adapters.

    :param names: of adapters, as tensors carry them; empty for tensors without one.
    :param where: the adapter as error messages name it.
    """
    found = sorted(set(names))
    if len(found) > 1:
        listed = ", ".join(name or "none" for name in found)
        raise ValueError(
            f"{where}: expected the tensors of one adapter, found the names {listed} in them; "
            "save each adapter alone"
        )
