"""A whole model with a merge in its weights: what a user without peft loads.

The sum theta_pre + s B A is made in float32 and rounded once. The copy shares no memory with the
base, and is made weight by weight, so that no more than the copy itself is held beside the base.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from evox_evogm.problems.adapters.factor_norms import RelativeError
from evox_evogm.problems.adapters.layers import keeps_inputs_first, split_name, weight_of
from evox_evogm.problems.adapters.read_adapter import Factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evox_evogm.problems.checkpoints.merged_checkpoints import MergedCheckpoints


def copy_with_merge(
    model: "PreTrainedModel",
    factors: Mapping[str, Factors],
    dtype: torch.dtype,
    checkpoints: "MergedCheckpoints | None" = None,
) -> "PreTrainedModel":
    """A copy of a model on the CPU, with a merge in its weights.

    Where an output layer shares its weight with the embedding and the merge changes only one of
    them, the copy has two weights, and its configuration says so.

    :param model: the base, which stays as it is.
    :param factors: of the merge by module.
    :param dtype: of the copy's floating-point weights.
    :param checkpoints: of the merge, if whole models take part.
    :raises ValueError: if a weight is too large for the dtype, or quantized.
    """
    memo: dict[int, torch.Tensor] = {}
    changed = {id(weight_of(model, name)) for name in factors}
    for name, parameter in model.named_parameters():
        if id(parameter) in changed and not parameter.is_floating_point():
            raise ValueError(
                f"base: expected floating-point weights to merge into, found {parameter.dtype} in "
                f"{name}; load the base unquantized"
            )
        own = _without_factors(parameter, checkpoints)
        memo[id(parameter)] = _frozen(_convert(name, own, dtype))
    # deepcopy takes what the memo has for an object in place of copying it.
    merged: Any = copy.deepcopy(model, memo)
    merged.to("cpu")  # what is no parameter
    shared = _layers_by_weight(model)
    for name, module in factors.items():
        own = _without_factors(weight_of(model, name), checkpoints)
        weight = own.to("cpu", torch.float32)
        total = _frozen(_convert(name, weight + delta_of(model, name, module), dtype))
        _set_weight(merged, name, total)
        if len(shared[id(weight_of(model, name))]) > 1:
            merged.config.tie_word_embeddings = False
    merged.config.dtype = dtype
    return merged.requires_grad_(False).eval()


def delta_of(model: torch.nn.Module, name: str, factors: Factors) -> torch.Tensor:
    """s B A in the shape of the weight, in float32 on the CPU."""
    product = factors.scale * factors.b.float() @ factors.a.float()
    return product.mT if keeps_inputs_first(model, name) else product


def weight_errors(
    model: torch.nn.Module,
    merged: torch.nn.Module,
    factors: Mapping[str, Factors],
    checkpoints: "MergedCheckpoints | None" = None,
) -> RelativeError:
    """How far the weights of a merged model are from the exact merge, relative to what it adds.

    :param model: the base.
    :param merged: a model of the same modules.
    :param factors: of the merge by module.
    :param checkpoints: of the merge, if whole models take part.
    """
    apart = {}
    norms = {}
    for name, exact, delta in exact_weights(model, factors, checkpoints):
        found = weight_of(merged, name).detach().to("cpu", torch.float32)
        apart[name], norms[name] = float((found - exact).norm()), float(delta.norm())
    return _relative(apart, norms)


def rounding_error(
    model: torch.nn.Module,
    factors: Mapping[str, Factors],
    dtype: torch.dtype,
    checkpoints: "MergedCheckpoints | None" = None,
) -> RelativeError:
    """What rounding merged weights to a dtype costs, relative to what the merge adds."""
    apart = {}
    norms = {}
    for name, exact, delta in exact_weights(model, factors, checkpoints):
        apart[name] = float((exact.to(dtype).float() - exact).norm())
        norms[name] = float(delta.norm())
    return _relative(apart, norms)


def exact_weights(
    model: torch.nn.Module,
    factors: Mapping[str, Factors],
    checkpoints: "MergedCheckpoints | None" = None,
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The weights that a merge changes.

    :param model: the base.
    :param factors: of the merge by module.
    :param checkpoints: of the merge, if whole models take part.
    :return: the name of a module or parameter, its weight, and what the merge adds to the base's;
        in float32 on the CPU.
    """
    for name, module in factors.items():
        weight = weight_of(model, name)
        delta = delta_of(model, name, module)
        original = weight.detach().to("cpu", torch.float32)
        own = _without_factors(weight, checkpoints).to("cpu", torch.float32)
        exact = own + delta
        yield name, exact, delta if checkpoints is None else exact - original
    if checkpoints is not None:
        for name in checkpoints.besides(list(factors)):
            whole = checkpoints.weight(weight_of(model, name))
            assert whole is not None, f"{name} does not change"
            yield name, whole, whole - checkpoints.original(name)


def _without_factors(
    parameter: torch.Tensor, checkpoints: "MergedCheckpoints | None"
) -> torch.Tensor:
    """A weight of a merge without what adapters add: the base's, if no whole model changes it."""
    whole = None if checkpoints is None else checkpoints.weight(parameter)
    return parameter.detach() if whole is None else whole


def _relative(apart: Mapping[str, float], norms: Mapping[str, float]) -> RelativeError:
    """Differences relative to what a merge adds.

    :param apart: the norm of the difference by module.
    :param norms: the norm of what the merge adds by module.
    """
    by_module = {}
    for name, difference in apart.items():
        by_module[name] = difference / norms[name] if norms[name] else difference
    squares = sum(difference**2 for difference in apart.values())
    total = sum(norm**2 for norm in norms.values())
    return RelativeError(math.sqrt(squares / total) if total else math.sqrt(squares), by_module)


def _convert(name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy of a weight on the CPU in a dtype, unless it is not of floating point.

    :raises ValueError: if the dtype cannot hold it.
    """
    if not weight.is_floating_point():
        return weight.to("cpu", copy=True)
    converted = weight.to("cpu", dtype, copy=True)
    if not converted.isfinite().all() and weight.isfinite().all():
        shown = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"dtype: expected weights that {shown} can hold, found {float(weight.abs().max()):.3g} "
            f"in {name}; take bfloat16 or float32"
        )
    return converted


def _frozen(weight: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight, requires_grad=False)


def _set_weight(model: torch.nn.Module, name: str, weight: torch.nn.Parameter) -> None:
    """Give a layer, or the holder of a parameter, a weight of its own."""
    holder, last = split_name(model, name)
    found = getattr(holder, last)
    if isinstance(found, torch.Tensor):
        setattr(holder, last, weight)
    else:
        found.weight = weight


def _layers_by_weight(model: torch.nn.Module) -> dict[int, list[str]]:
    """The names of the modules that have each parameter, by the parameter's id."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            found.setdefault(id(parameter), []).append(name)
    return found
