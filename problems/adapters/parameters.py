"""Factors of parameters that are no weights of layers: of the experts of a mixture, and of routers.

A mixture of experts keeps the weights of its E experts in one parameter `(E, D_out, D_in)`. peft
(`target_parameters`) has factors for it with r rows of A per expert. transformers 4 had a layer per
expert instead. Adapters from then hold factors per expert, which peft fuses when it loads them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from evox_evogm.problems.adapters.adapter_config import (
    CONFIG,
    LoraSettings,
    compile_patterns,
    rank_and_alpha,
)
from evox_evogm.problems.adapters.layers import is_layer, keeps_inputs_first, split_name, weight_of
from evox_evogm.problems.adapters.read_adapter import Factors, check_rank
from evox_evogm.problems.adapters.tensor_names import FACTOR_NAME, PREFIX

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

WRAPPED = ".base_layer"  # what peft adds to the name of a module that it wraps


def factors_of_parameters(
    modules: Mapping[str, Factors],
    settings: LoraSettings,
    model: "PreTrainedModel",
    where: str,
) -> dict[str, Factors]:
    """Give the factors of parameters their names, their shapes and their scales.

    peft wraps a module once for each of its targeted parameters, the first parameter innermost. A
    file thus has `experts.base_layer.lora_A` for the first of two, and `experts.lora_A` for the
    second.

    :param modules: factors by the names in the file.
    :param settings: whose `target_parameters` name the parameters by the ends of their names.
    :param where: the adapter as error messages name it.
    :return: the factors, those of parameters by the names of these.
    :raises ValueError: if they do not fit the parameters of the base.
    """
    containers = dict(model.named_modules())
    found = {}
    for name, factors in modules.items():
        inner = without_wrappers(name)
        target = _target_of(name, containers.get(inner), settings, where)
        if target is None:
            found[name] = factors
        elif is_layer(containers[inner]):
            found[inner] = _of_layer(inner, target, factors, model, settings, where)
        else:
            full_name = f"{inner}.{target}"
            found[full_name] = _of_parameter(full_name, factors, model, settings, where)
    return found


def _target_of(
    name: str, container: torch.nn.Module | None, settings: LoraSettings, where: str
) -> str | None:
    """The parameter that factors belong to, or None if they are those of a layer.

    :param name: in the file, the container's with what peft adds where it wraps it.
    :param container: the module that holds the parameter, if the base has it.
    """
    if container is None:
        return None
    inner = without_wrappers(name)
    targets = _targets(inner, container, settings)
    if not targets:
        return None
    depth = name.removeprefix(inner).count(WRAPPED)
    if depth >= len(targets):
        raise ValueError(
            f"{where}: expected {len(targets)} pairs of factors for {inner}, found more, "
            f"as {name!r}; plain peft does not load them on this base"
        )
    return targets[len(targets) - 1 - depth]


def flatten_factors(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of a parameter as peft keeps them; others as they are.

    :param a: A, an `(r, D_in)` or `(E, r, D_in)` tensor.
    :param b: B, a `(D_out, r)` or `(E, D_out, r)` tensor.
    """
    if a.ndim == 2:
        return a, b
    return a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)


def unflatten_factors(
    a: torch.Tensor, b: torch.Tensor, parameter: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of a parameter from those that peft keeps, see `flatten_factors`.

    :param parameter: a tensor of two dimensions, or of three with E in front.
    """
    if parameter.ndim == 2:
        return a, b
    count = len(parameter)
    return a.unflatten(0, (count, -1)), b.unflatten(1, (-1, count)).permute(2, 0, 1)


def without_wrappers(name: str) -> str:
    """The name of the module that peft wrapped, once or several times."""
    while name.endswith(WRAPPED):
        name = name.removesuffix(WRAPPED)
    return name


def _targets(name: str, container: torch.nn.Module, settings: LoraSettings) -> list[str]:
    """The parameters of a module that the configuration targets, in their order."""
    targets = []
    for parameter, _ in container.named_parameters(recurse=False):
        full_name = f"{name}.{parameter}"
        for target in settings.target_parameters:
            if full_name == target or full_name.endswith(f".{target}"):
                targets.append(parameter)
                break
    return targets


def _of_layer(
    name: str,
    target: str,
    factors: Factors,
    model: "PreTrainedModel",
    settings: LoraSettings,
    where: str,
) -> Factors:
    """The factors of a layer whose weight was targeted as a parameter: B A has its shape."""
    a, b = factors.a, factors.b
    if target != "weight":
        raise ValueError(f"{where}: expected factors of weights, found those of {name}.{target}")
    rank, alpha = rank_and_alpha(settings, f"{name}.{target}", where)
    check_rank(name, a, b, rank, where)
    if keeps_inputs_first(model, name):
        a, b = b.mT, a.mT
    embedding = isinstance(model.get_submodule(name), torch.nn.Embedding)
    return Factors(a, b, settings.scale(rank, alpha), embedding)


def _of_parameter(
    full_name: str,
    factors: Factors,
    model: "PreTrainedModel",
    settings: LoraSettings,
    where: str,
) -> Factors:
    """The factors of a parameter, from A `(E r, D_in)` and B `(D_out, r E)` as peft keeps them."""
    parameter = weight_of(model, full_name)
    if parameter.ndim not in (2, 3):
        raise ValueError(
            f"{where}: expected a parameter of two or three dimensions, "
            f"found {tuple(parameter.shape)} of {full_name}"
        )
    rank, alpha = rank_and_alpha(settings, full_name, where)
    outputs, inputs = parameter.shape[-2:]
    if keeps_inputs_first(model, full_name):
        inputs, outputs = outputs, inputs
    count = len(parameter) if parameter.ndim == 3 else 1  # E
    expected = (count * rank, inputs), (outputs, rank * count)
    found = tuple(factors.a.shape), tuple(factors.b.shape)
    if found != expected:
        raise ValueError(
            f"{where}: expected lora_A {expected[0]} and lora_B {expected[1]} for {full_name}, "
            f"found {found[0]} and {found[1]}; it belongs to another base model"
        )
    a, b = unflatten_factors(factors.a, factors.b, parameter)
    holder, last = split_name(model, full_name)
    place = [name for name, _ in holder.named_parameters(recurse=False)].index(last)
    return Factors(a, b, settings.scale(rank, alpha), embedding=False, place=place)


def fuse_experts(
    modules: Mapping[str, Factors],
    settings: LoraSettings,
    model: "PreTrainedModel",
    where: str,
) -> dict[str, Factors]:
    """Fuse factors of single experts of a mixture, as peft does when it loads them.

    :param modules: factors by names of transformers 4, as `mlp.experts.0.up_proj`. Others stay as
        they are.
    :param where: the adapter as error messages name it.
    :raises ValueError: if peft refuses them, or would give them other scales.
    """
    pairs = {name: factors for name, factors in modules.items() if not factors.embedding}
    tensors, config = _convert(pairs, settings, model, where)
    fused = _read_converted(tensors, settings)
    if not config.target_parameters:
        return dict(modules)
    today = replace(
        settings,
        rank_pattern=compile_patterns(config.rank_pattern or {}, "rank_pattern", where),
        alpha_pattern=compile_patterns(config.alpha_pattern or {}, "alpha_pattern", where),
        target_parameters=tuple(sorted(config.target_parameters)),
    )
    found = factors_of_parameters(fused, today, model, where)
    before = {factors.scale for factors in pairs.values()}
    for name, factors in found.items():
        if factors.is_parameter and before != {factors.scale}:
            raise ValueError(
                f"{where}: expected one scale for {name}, found {sorted(before)} by {CONFIG}, "
                f"where plain peft gives {factors.scale}; leave this adapter out or retrain it"
            )
    kept = {name: factors for name, factors in modules.items() if name not in pairs}
    return kept | found


def _convert(
    modules: Mapping[str, Factors], settings: LoraSettings, model: "PreTrainedModel", where: str
) -> tuple[dict[str, torch.Tensor], "LoraConfig"]:
    """Tensors and configuration of an adapter of transformers 4, converted by peft."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import (
        convert_peft_adapter_state_dict_for_transformers,
        convert_peft_config_for_transformers,
    )

    ends = {name.rpartition(".")[2] for name in modules}
    alpha: Any = settings.alpha  # peft takes any number
    config = LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=sorted(ends))
    tensors = {}
    for name, factors in modules.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = factors.a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = factors.b
    try:
        convert_peft_config_for_transformers(config, model, None)
        tensors = convert_peft_adapter_state_dict_for_transformers(model, config, tensors)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{where}: expected factors that peft can fuse for this base, found that it {error}"
        ) from error
    return tensors, config


def _read_converted(
    tensors: Mapping[str, torch.Tensor], settings: LoraSettings
) -> dict[str, Factors]:
    """The factors in tensors with names of peft, all with the scale that no pattern changes."""
    scale = settings.scale(settings.rank, settings.alpha)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name = FACTOR_NAME.fullmatch(key)
        assert name is not None, f"peft gave {key}"
        pairs.setdefault(name["module"], {})[name["factor"]] = tensor
    factors = {}
    for module, pair in pairs.items():
        factors[module] = Factors(pair["A"], pair["B"], scale, embedding=False)
    return factors
