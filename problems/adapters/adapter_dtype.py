"""The precision of an exported adapter, by its name in settings."""

from collections.abc import Sequence

import torch

from evox_evogm.problems.adapters.read_adapter import WEIGHTS, Expert

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXPERTS = "experts"
# Of safetensors' headers; anything else is exported in float32.
HEADER = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# The relative difference of weights up to which a loaded adapter counts as the merge: of float32 by
# rounding in another order, of the others by rounding each factor once.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def resolve_adapter_dtype(name: str, experts: Sequence[Expert]) -> torch.dtype:
    """The dtype of a name.

    :param name: float32, bfloat16, float16, or experts for that of the experts' own files.
    :raises ValueError: if it is none of these.
    """
    if name == EXPERTS:
        return dtype_of_experts(experts)
    if name not in DTYPES:
        raise ValueError(f"dtype: expected {', '.join(DTYPES)} or {EXPERTS}, found {name!r}")
    return DTYPES[name]


def dtype_of_experts(experts: Sequence[Expert]) -> torch.dtype:
    """The dtype that all experts' files have in common; float32 where they differ."""
    adapters = [expert for expert in experts if expert.checkpoint is None]
    found = {dtype for expert in adapters for dtype in _dtypes_in(expert)}
    return found.pop() if len(found) == 1 else torch.float32


def _dtypes_in(expert: Expert) -> set[torch.dtype]:
    """The dtypes of the factors in an expert's file."""
    from safetensors import safe_open

    found = set()
    with safe_open(expert.folder / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            if ".lora_" in name:
                kept = file.get_slice(name).get_dtype()
                found.add(HEADER.get(kept, torch.float32))
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in settings and messages."""
    return str(dtype).removeprefix("torch.")
