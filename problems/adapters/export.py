"""Write a merge as one LoRA adapter in PEFT format, and check it by reading it back with peft."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evox_evogm.problems.adapters.adapter_config import CONFIG
from evox_evogm.problems.adapters.groups import Groups
from evox_evogm.problems.adapters.parameters import (
    WRAPPED,
    flatten_factors,
    unflatten_factors,
    without_wrappers,
)
from evox_evogm.problems.adapters.read_adapter import WEIGHTS, Expert, Factors
from evox_evogm.problems.adapters.stacked_modules import (
    StackedModule,
    stack_experts,
    with_used_channels,
)
from evox_evogm.problems.adapters.tensor_names import PREFIX
from evox_evogm.resume.atomic_write import atomic_write


def export_adapter(
    experts: Sequence[Expert],
    coefficients: torch.Tensor,
    folder,
    *,
    base: str,
    groups: Groups | None = None,
    dtype: torch.dtype = torch.float32,
    task_type: str | None = "CAUSAL_LM",
    revision: str | None = None,
) -> None:
    """Write the merge as one LoRA adapter in PEFT format, exact in float32.

    The factors are concatenated, with lambda_k s_k inside B. The rank of a module is the sum of the
    experts' ranks there, and its alpha equals its rank. What has coefficient 0 is left out.

    :param coefficients: an `(n g,)` tensor of effective coefficients.
    :param folder: created if it is missing.
    :param base: the name of the base model, written into the configuration.
    :param groups: of the modules; one by default.
    :param dtype: of the tensors. In a half precision they are rounded.
    :param task_type: what peft calls the kind of the base, see `task_type_of`; None where it has no
        name for it, as for models of images.
    :param revision: of the base on the hub, which peft loads; None for its main branch.
    :raises ValueError: if every coefficient is 0: the merge is the base itself.
    """
    factors = merge_factors(experts, coefficients, groups)
    write_adapter(factors, folder, base=base, dtype=dtype, task_type=task_type, revision=revision)


def merge_factors(
    experts: Sequence[Expert], coefficients: torch.Tensor, groups: Groups | None = None
) -> dict[str, Factors]:
    """The factors of a merge by module, with lambda_k s_k inside B, in float32 on the CPU.

    :param coefficients: an `(n g,)` tensor of effective coefficients.
    :param groups: of the modules; one by default.
    :raises ValueError: if every coefficient is 0: the merge is the base itself.
    """
    factors = used_factors(experts, coefficients, groups)
    if not factors:
        raise ValueError(
            "coefficients: expected at least one other than 0, found all 0; "
            "the merge is the base model itself"
        )
    return factors


def used_factors(
    experts: Sequence[Expert], coefficients: torch.Tensor, groups: Groups | None = None
) -> dict[str, Factors]:
    """What `merge_factors` gives; empty where no adapter takes part in the merge."""
    coefficients = coefficients.detach().to("cpu", torch.float32)
    factors = {}
    for name, module in _stack_used(experts, coefficients, groups).items():
        scaled_b = module.b * module.channel_weights(coefficients)
        factors[name] = Factors(module.a, scaled_b, 1.0, module.embedding, module.place)
    return factors


def round_factors(factors: Mapping[str, Factors], dtype: torch.dtype) -> dict[str, Factors]:
    """Factors as a file in a precision holds them.

    :param factors: by module, with scale 1.
    :raises ValueError: if a number is too large for the precision.
    """
    rounded = {}
    for name, module in factors.items():
        a, b = module.a.to(dtype), module.b.to(dtype)
        if not (a.isfinite().all() and b.isfinite().all()):
            largest = max(float(module.a.abs().max()), float(module.b.abs().max()))
            shown = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"dtype: expected numbers that {shown} can hold, found {largest:.3g} in {name}; "
                "take bfloat16 or float32"
            )
        rounded[name] = replace(module, a=a, b=b)
    return rounded


def write_adapter(
    factors: Mapping[str, Factors],
    folder,
    *,
    base: str,
    dtype: torch.dtype = torch.float32,
    task_type: str | None = "CAUSAL_LM",
    revision: str | None = None,
) -> None:
    """Write factors as a LoRA adapter in PEFT format whose alpha equals its rank in every module.

    Each file is written whole or not at all, the configuration last.

    :param factors: by module, with scale 1; not empty.
    :param folder: created if it is missing.
    :param base: the name of the base model, written into the configuration.
    :param dtype: of the tensors.
    :param task_type: what peft calls the kind of the base.
    :param revision: of the base on the hub; None for its main branch.
    """
    from safetensors.torch import save

    tensors = _adapter_tensors(round_factors(factors, dtype))
    settings = _adapter_config(factors, base, task_type)
    if revision is not None:
        settings["revision"] = revision
    config = json.dumps(settings, indent=2) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Weights and configuration of two merges must never stand together.
    (folder / CONFIG).unlink(missing_ok=True)
    # Not by safetensors' save_file, which does not raise an OSError on a full disk.
    atomic_write(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    atomic_write(folder / CONFIG, config.encode())


def reload_difference(
    model: torch.nn.Module,
    experts: Sequence[Expert],
    coefficients: torch.Tensor,
    folder,
    groups: Groups | None = None,
) -> float:
    """Load an exported adapter with plain peft, and compare it with sum_k lambda_k s_k B_k A_k.

    :param model: the base model. peft wraps its layers during the comparison and unwraps them.
    :param coefficients: an `(n g,)` tensor of effective coefficients.
    :param folder: of the exported adapter.
    :param groups: of the modules; one by default.
    :return: the largest ||difference|| / ||expected|| over all modules (Frobenius norms).
    """
    factors = merge_factors(experts, coefficients, groups)
    with loaded_by_peft(model, folder):
        return difference_from_factors(model, factors)


@contextmanager
def loaded_by_peft(model: torch.nn.Module, folder) -> Iterator[None]:
    """Inside the block a model has an adapter as plain peft loads it; afterwards it is as it was.

    :param model: the base model, whose layers peft wraps.
    :param folder: of the adapter.
    """
    from peft import PeftModel

    with _flags_kept(model):
        reloaded = PeftModel.from_pretrained(model, folder)
        reloaded.eval()
        try:
            yield
        finally:
            reloaded.unload()


@torch.no_grad()
def difference_from_factors(model: torch.nn.Module, factors: Mapping[str, Factors]) -> float:
    """How far the adapter of a model is from factors, inside of `loaded_by_peft`.

    :param factors: by module, with scale 1.
    :return: the largest ||difference|| / ||expected|| over all modules (Frobenius norms).
    """
    missing = set(factors)
    worst = 0.0
    for name, found in _deltas(model):
        expected = factors[name].b.float() @ factors[name].a.float()  # (D_out, D_in)
        difference = (found - expected).norm() / expected.norm().clamp_min(1e-30)
        worst = max(worst, float(difference))
        missing.discard(name)
    assert not missing, f"peft did not load {missing}"
    return worst


def _deltas(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a loaded adapter adds to each weight, by the name of the layer or parameter.

    :return: names and `(D_out, D_in)` or `(E, D_out, D_in)` tensors in float32 on the CPU.
    """
    from peft.tuners.lora import LoraLayer, ParamWrapper

    layer: Any  # peft's classes declare few of their members
    for name, layer in model.named_modules():
        if isinstance(layer, ParamWrapper):
            yield f"{without_wrappers(name)}.{layer.parameter_name}", _delta_of_parameter(layer)
        elif isinstance(layer, LoraLayer):
            declared: Any = layer  # a LoraLayer declares no such method, though all have it
            delta = declared.get_delta_weight("default").to("cpu", torch.float32)
            is_linear = isinstance(layer.get_base_layer(), torch.nn.Linear)
            yield name, delta if is_linear else delta.mT  # Conv1D and embeddings: (D_in, D_out)


def _delta_of_parameter(wrapper) -> torch.Tensor:
    """What a loaded adapter adds to a parameter: peft's own product has the base's precision.

    :param wrapper: peft's `ParamWrapper`.
    """
    a = wrapper.lora_A["default"].weight.detach().to("cpu", torch.float32)
    b = wrapper.lora_B["default"].weight.detach().to("cpu", torch.float32)
    a, b = unflatten_factors(a, b, wrapper.get_param())
    return wrapper.scaling["default"] * b @ a


@contextmanager
def _flags_kept(model: torch.nn.Module) -> Iterator[None]:
    """Have a model's modes and gradients afterwards as they were: peft freezes what it wraps."""
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in gradients.items():
            parameter.requires_grad_(requires_grad)


def _stack_used(
    experts: Sequence[Expert], coefficients: torch.Tensor, groups: Groups | None
) -> dict[str, StackedModule]:
    """The channels whose coefficient is not 0, by module, in float32 on the CPU.

    :param coefficients: an `(n g,)` tensor on the CPU.
    """
    stacked = stack_experts(experts, torch.float32, torch.device("cpu"), groups=groups)
    return with_used_channels(stacked, coefficients != 0)


def _adapter_tensors(modules: Mapping[str, Factors]) -> dict[str, torch.Tensor]:
    """The tensors of a merge by the names that peft gives them."""
    keys = _tensor_names(modules)
    tensors = {}
    for name, module in modules.items():
        key_a, key_b = keys[name]
        a, b = flatten_factors(module.a, module.b)
        tensors[key_a] = a.contiguous()
        tensors[key_b] = b.contiguous()
    return tensors


def _tensor_names(modules: Mapping[str, Factors]) -> dict[str, tuple[str, str]]:
    """The names that peft gives A and B of each module, see `factors_of_parameters`."""
    outside: dict[str, int] = {}  # by module, how many of its parameters are wrapped further out
    names = {}
    for name, module in sorted(modules.items(), key=lambda item: -(item[1].place or 0)):
        prefix = f"{PREFIX}{name}"
        if module.is_parameter:
            holder = name.rpartition(".")[0]
            wraps = outside.get(holder, 0)
            outside[holder] = wraps + 1
            prefix = f"{PREFIX}{holder}{wraps * WRAPPED}"
        if module.embedding:
            names[name] = f"{prefix}.lora_embedding_A", f"{prefix}.lora_embedding_B"
        else:
            names[name] = f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"
    return names


def _adapter_config(modules: Mapping[str, Factors], base: str, task_type: str | None) -> dict:
    """The settings of an adapter whose alpha equals its rank in every module: s is 1."""
    ranks = {name: module.a.shape[-2] for name, module in modules.items()}
    largest = max(ranks.values())
    patterns = {name: rank for name, rank in ranks.items() if rank != largest}
    parameters = [name for name in sorted(modules) if modules[name].is_parameter]
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
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
        "target_modules": [name for name in sorted(modules) if not modules[name].is_parameter],
    }
    if parameters:
        config["target_parameters"] = parameters
    return config
