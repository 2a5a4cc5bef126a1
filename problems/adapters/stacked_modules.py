"""The factors of all experts by module, stacked, and what the channels between A and B weigh."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from evox_evogm.problems.adapters.groups import Groups, group_modules
from evox_evogm.problems.adapters.layers import weight_of
from evox_evogm.problems.adapters.read_adapter import Expert, Factors
from evox_evogm.problems.adapters.shared_inputs import JoinedFactors, layers_with_same_input

# The coefficient and the scale of each channel, by what they are made of.
Channels = dict[tuple, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class StackedModule:
    """The factors of all experts of one module; R is the sum of their ranks.

    :param a: A, an `(R, D_in)` tensor, or `(E, R, D_in)` of a parameter of E matrices.
    :param b: B, a `(D_out, R)` tensor, or `(E, D_out, R)`.
    :param coefficient: an `(R,)` tensor, the index of each channel's coefficient: that of its
        expert in the group of the module or channel.
    :param scale: an `(R,)` tensor, s of each channel's expert.
    :param embedding: whether the module is an embedding.
    :param place: of a parameter, its place among those of its module; None of a layer.
    :param joined: A of all layers that are probably given the same tensor, which has this A in it;
        None where there are no others.
    """

    a: torch.Tensor
    b: torch.Tensor
    coefficient: torch.Tensor
    scale: torch.Tensor
    embedding: bool
    place: int | None = None
    joined: JoinedFactors | None = None

    @property
    def is_parameter(self) -> bool:
        """Whether the factors are those of a parameter, not of a layer."""
        return self.place is not None

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[-2]

    @property
    def channel_key(self) -> tuple:
        """The same for modules whose channels have the same weights, as far as that is known."""
        return id(self.coefficient), id(self.scale), self.a.dtype, self.a.device

    def channel_weights(self, coefficients: torch.Tensor) -> torch.Tensor:
        """c `(..., R)` of candidates `(..., n g)`, in the dtype of the coefficients."""
        return coefficients[..., self.coefficient] * self.scale.to(coefficients.dtype)


def stack_experts(
    experts: Sequence[Expert],
    dtype: torch.dtype,
    device: torch.device,
    model: torch.nn.Module | None = None,
    groups: Groups | None = None,
) -> dict[str, StackedModule]:
    """Stack the factors of n experts by module name.

    An expert that does not touch a module gets no channels there. A of layers with the same input,
    such as q, k and v, are rows of one tensor.

    :param dtype: of the factors.
    :param device: of the factors.
    :param model: if given, the factors of a module go where its weight is. They take its dtype too
        if that is a floating-point type of at least 16 bits.
    :param groups: of the modules; one by default.
    """
    parts: dict[str, dict[int, Factors]] = {}
    for index, expert in enumerate(experts):
        for name, factors in expert.modules.items():
            parts.setdefault(name, {})[index] = factors
    groups = groups or group_modules(dict.fromkeys(parts, 1))
    stacked = {}
    channels: Channels = {}
    for name in sorted(parts):
        own_dtype, own_device = dtype, device
        if model is not None:
            weight = weight_of(model, name)
            own_device = weight.device
            if weight.dtype.is_floating_point and weight.dtype.itemsize > 1:
                own_dtype = weight.dtype
        numbers = _number_coefficients(name, parts[name], groups)
        stacked[name] = _stack_module(parts[name], own_dtype, own_device, numbers, channels)
    _join_same_inputs(stacked)
    return stacked


def factors_of_layers(modules: Mapping[str, StackedModule]) -> dict[str, torch.Tensor]:
    """A of each layer that multiplies its input, by name: not of embeddings and parameters."""
    factors = {}
    for name, module in modules.items():
        if not module.is_parameter and not module.embedding:
            factors[name] = module.a
    return factors


def _join_same_inputs(stacked: dict[str, StackedModule]) -> None:
    """Make A of layers with the same input rows of one tensor, which all populations use."""
    for names in layers_with_same_input(factors_of_layers(stacked)):
        joined = JoinedFactors(tuple(names), torch.cat([stacked[name].a for name in names]))
        end = 0
        for name in names:
            start, end = end, end + stacked[name].rank
            stacked[name] = replace(stacked[name], a=joined.a[start:end], joined=joined)


def _number_coefficients(
    name: str, parts: Mapping[int, Factors], groups: Groups
) -> tuple[int, ...]:
    """The number of the coefficient of each channel of a module.

    :param name: of the module.
    :param parts: by the index of the expert, in ascending order.
    :param groups: of the modules.
    """
    numbers: list[int] = []
    for index, factors in parts.items():
        for group in groups.of_channels(name, factors.a.shape[-2]):
            numbers.append(index * groups.count + group)
    return tuple(numbers)


def _stack_module(
    parts: Mapping[int, Factors],
    dtype: torch.dtype,
    device: torch.device,
    coefficients: tuple[int, ...],
    channels: Channels,
) -> StackedModule:
    """Stack the factors that experts have for one module.

    :param parts: by the index of the expert, in ascending order.
    :param coefficients: the number of each channel's coefficient.
    :param channels: those of earlier modules. Equal ones are the same tensors, so that their
        weights are computed once.
    """
    factors = list(parts.values())
    a = torch.cat([one.a for one in factors], dim=-2)
    b = torch.cat([one.b for one in factors], dim=-1)
    ranks = tuple(one.a.shape[-2] for one in factors)
    scales = tuple(one.scale for one in factors)
    key = (ranks, coefficients, scales, device)
    if key not in channels:
        coefficient = torch.tensor(coefficients)
        scale = torch.tensor(scales).repeat_interleave(torch.tensor(ranks))
        channels[key] = coefficient.to(device), scale.to(device)
    coefficient, scale = channels[key]
    return StackedModule(
        a=a.to(device, dtype),
        b=b.to(device, dtype),
        coefficient=coefficient,
        scale=scale,
        embedding=factors[0].embedding,
        place=factors[0].place,
    )


def with_used_channels(
    modules: Mapping[str, StackedModule], used: torch.Tensor
) -> dict[str, StackedModule]:
    """The channels of some coefficients, by module. Modules without any are left out.

    :param used: an `(n g,)` tensor of booleans.
    """
    kept: dict[tuple, tuple[torch.Tensor, ...]] = {}
    found = {}
    for name, module in modules.items():
        key = module.channel_key
        if key not in kept:
            keep = used.to(module.coefficient.device)[module.coefficient]
            places = keep.nonzero().flatten()  # waits for the device
            kept[key] = places, module.coefficient[places], module.scale[places]
        places, coefficient, scale = kept[key]
        if not len(places):
            continue
        found[name] = replace(
            module,
            a=module.a.index_select(-2, places),
            b=module.b.index_select(-1, places),
            coefficient=coefficient,
            scale=scale,
            joined=None,
        )
    return found


def bytes_of_copies(
    modules: Mapping[str, StackedModule], originals: Mapping[str, StackedModule]
) -> int:
    """The size of those factors of modules that are not those of the originals."""
    size = 0
    for name, module in modules.items():
        if module.a is not originals[name].a:
            size += module.a.nbytes
        if module.b is not originals[name].b:
            size += module.b.nbytes
    return size


def weights_of_modules(
    modules: Mapping[str, StackedModule], coefficients: torch.Tensor
) -> dict[str, torch.Tensor]:
    """c `(..., R)` of each module; the same tensor where the channels are the same.

    They are computed in float32 at least, then rounded. Coefficients are looked up once for all
    modules of a device and dtype: each look-up costs a backward pass as much as all coefficients.

    :param coefficients: of candidates, a `(..., n g)` tensor.
    """
    different = {module.channel_key: module for module in modules.values()}
    alike: dict[tuple[torch.device, torch.dtype], list[StackedModule]] = {}
    for module in different.values():
        alike.setdefault((module.a.device, module.a.dtype), []).append(module)
    made: dict[tuple, torch.Tensor] = {}
    for (device, dtype), members in alike.items():
        precision = torch.promote_types(dtype, torch.float32)
        numbers = torch.cat([module.coefficient for module in members])
        found = coefficients.to(device, precision)[..., numbers]  # (..., R of all)
        parts = found.split([module.rank for module in members], dim=-1)
        for module, part in zip(members, parts, strict=True):
            made[module.channel_key] = (part * module.scale.to(precision)).to(dtype)
    return {name: made[module.channel_key] for name, module in modules.items()}
