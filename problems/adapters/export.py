"""Write a merge as one LoRA adapter in PEFT format, and check it by reading it back with peft."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from evox_evogm.problems.adapters.adapter_config import CONFIG
from evox_evogm.problems.adapters.merging import StackedModule, stack_experts
from evox_evogm.problems.adapters.read_adapter import WEIGHTS, Expert


def export_adapter(
    experts: Sequence[Expert], coefficients: torch.Tensor, folder, *, base: str
) -> None:
    """Write the merge as one LoRA adapter in PEFT format, exact in float32.

    The factors are concatenated, with lambda_k s_k inside B. The rank of a module is the sum of the
    experts' ranks there, and its alpha equals its rank. Experts with coefficient 0 are left out.

    :param coefficients: an `(n,)` tensor of effective coefficients.
    :param folder: created if it is missing.
    :param base: the name of the base model, written into the configuration.
    :raises ValueError: if every coefficient is 0: the merge is the base itself.
    """
    from safetensors.torch import save

    modules, coefficients = _stack_used(experts, coefficients)
    if not modules:
        raise ValueError(
            "coefficients: expected at least one other than 0, found all 0; "
            "the merge is the base model itself"
        )
    tensors = {}
    for name, module in modules.items():
        key_a, key_b = _tensor_names(name, embedding=module.embedding)
        scaled_b = module.b * module.channel_weights(coefficients)
        tensors[key_a] = module.a.contiguous()
        tensors[key_b] = scaled_b.contiguous()
    config = _adapter_config(modules, base)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Not by safetensors' save_file, which does not raise an OSError on a full disk.
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def reload_difference(
    model: torch.nn.Module, experts: Sequence[Expert], coefficients: torch.Tensor, folder
) -> float:
    """Load an exported adapter with plain peft, and compare it with sum_k lambda_k s_k B_k A_k.

    :param model: the base model. peft wraps its layers during the comparison and unwraps them.
    :param coefficients: an `(n,)` tensor of effective coefficients.
    :param folder: of the exported adapter.
    :return: the largest ||difference|| / ||expected|| over all modules (Frobenius norms).
    """
    from peft import PeftModel

    modules, coefficients = _stack_used(experts, coefficients)
    reloaded = PeftModel.from_pretrained(model, folder)
    try:
        layers = dict(reloaded.get_base_model().named_modules())
        worst = 0.0
        for name, module in modules.items():
            scaled_b = module.b * module.channel_weights(coefficients)
            expected = scaled_b @ module.a  # (D_out, D_in)
            found = layers[name].get_delta_weight("default").to("cpu", torch.float32)
            # Conv1D and embeddings keep (D_in, D_out).
            if module.embedding or found.shape != expected.shape:
                found = found.mT
            difference = (found - expected).norm() / expected.norm().clamp_min(1e-30)
            worst = max(worst, float(difference))
    finally:
        reloaded.unload()
    return worst


def _stack_used(
    experts: Sequence[Expert], coefficients: torch.Tensor
) -> tuple[dict[str, StackedModule], torch.Tensor]:
    """The experts whose coefficient is not 0, stacked in float32 on the CPU, and these."""
    coefficients = coefficients.detach().to("cpu", torch.float32)
    used = coefficients.nonzero().flatten()
    used_experts = [experts[index] for index in used]
    modules = stack_experts(used_experts, torch.float32, torch.device("cpu"))
    return modules, coefficients[used]


def _tensor_names(module: str, *, embedding: bool) -> tuple[str, str]:
    """The names that peft gives A and B of a module."""
    prefix = f"base_model.model.{module}"
    if embedding:
        return f"{prefix}.lora_embedding_A", f"{prefix}.lora_embedding_B"
    return f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"


def _adapter_config(modules: Mapping[str, StackedModule], base: str) -> dict:
    """The settings of an adapter whose alpha equals its rank in every module: s is 1."""
    ranks = {name: len(module.a) for name, module in modules.items()}
    largest = max(ranks.values())
    patterns = {name: rank for name, rank in ranks.items() if rank != largest}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
    }
