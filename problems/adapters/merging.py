"""The exact merge: theta(lambda) = theta_pre + sum_k lambda_k s_k B_k A_k, without dense deltas.

The factors of all experts are stacked once per module: A = [A_1; ...; A_n], B = [B_1, ..., B_n].
A candidate only scales the channels between A and B: y = x W^T + ((x A^T) * c) B^T, with
c = repeat(lambda_k s_k, r_k). An expert may have a coefficient per group of modules
(`groups.py`). There are two modes.

- Unmerged (`merged`): hooks add the experts' part, and the rows of one batch may belong to
  different candidates.
  Parameters that are no weights of layers go to the rows of their candidates
  (`candidate_parameters.py`).
- Merged (`WeightMerger`): one candidate goes into the weights, and every token then costs what it
  costs in the base.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.candidate_parameters import parameters_by_row
from evox_evogm.problems.adapters.groups import Groups
from evox_evogm.problems.adapters.layers import keeps_inputs_first, weight_of
from evox_evogm.problems.adapters.read_adapter import Expert, Factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StackedModule:
    """The factors of all experts of one module; R is the sum of their ranks.

    :param a: A, an `(R, D_in)` tensor, or `(E, R, D_in)` of a parameter of E matrices.
    :param b: B, a `(D_out, R)` tensor, or `(E, D_out, R)`.
    :param coefficient: an `(R,)` tensor, the index of each channel's coefficient: that of its
        expert in the group of the module.
    :param scale: an `(R,)` tensor, s of each channel's expert.
    :param embedding: whether the module is an embedding.
    :param place: of a parameter, its place among those of its module; None of a layer.
    """

    a: torch.Tensor
    b: torch.Tensor
    coefficient: torch.Tensor
    scale: torch.Tensor
    embedding: bool
    place: int | None = None

    @property
    def is_parameter(self) -> bool:
        """Whether the factors are those of a parameter, not of a layer."""
        return self.place is not None

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[-2]

    def only(self, used: torch.Tensor) -> "StackedModule":
        """The module with the channels of some coefficients.

        :param used: an `(n g,)` tensor of booleans.
        """
        keep = used[self.coefficient]
        return replace(
            self,
            a=self.a[..., keep, :],
            b=self.b[..., keep],
            coefficient=self.coefficient[keep],
            scale=self.scale[keep],
        )

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

    An expert that does not touch a module gets no channels there.

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
    stacked = {}
    for name in sorted(parts):
        own_dtype, own_device = dtype, device
        if model is not None:
            weight = weight_of(model, name)
            own_device = weight.device
            if weight.dtype.is_floating_point and weight.dtype.itemsize > 1:
                own_dtype = weight.dtype
        stacked[name] = _stack_module(parts[name], own_dtype, own_device, groups, name)
    return stacked


def _stack_module(
    parts: Mapping[int, Factors],
    dtype: torch.dtype,
    device: torch.device,
    groups: Groups | None,
    name: str,
) -> StackedModule:
    """Stack the factors that experts have for one module.

    :param parts: by the index of the expert, in ascending order.
    :param name: of the module.
    """
    factors = list(parts.values())
    a = torch.cat([one.a for one in factors], dim=-2)
    b = torch.cat([one.b for one in factors], dim=-1)
    ranks = torch.tensor([one.a.shape[-2] for one in factors])
    coefficients = torch.tensor(list(parts))
    if groups is not None:
        coefficients = coefficients * groups.count + groups.of_module[name]
    scales = torch.tensor([one.scale for one in factors])
    return StackedModule(
        a=a.to(device, dtype),
        b=b.to(device, dtype),
        coefficient=coefficients.repeat_interleave(ranks).to(device),
        scale=scales.repeat_interleave(ranks).to(device),
        embedding=factors[0].embedding,
        place=factors[0].place,
    )


def _weights_in_dtype(module: StackedModule, coefficients: torch.Tensor) -> torch.Tensor:
    """c `(..., R)` of candidates `(..., n g)`: computed in float32 at least, then rounded."""
    precision = torch.promote_types(module.a.dtype, torch.float32)
    coefficients = coefficients.to(module.a.device, precision)
    return module.channel_weights(coefficients).to(module.a.dtype)


class Population:
    """P candidates that share the base and the stacked factors.

    Each row of a batch belongs to one of them, as `select` says.
    """

    def __init__(
        self,
        modules: Mapping[str, StackedModule],
        coefficients: torch.Tensor,
        *,
        own_rows: bool = False,
    ):
        """Compute the channel weights of every module.

        Channels whose coefficient is 0 in every candidate are left out, and so are modules without
        any others.

        :param modules: the experts, as `stack_experts` returns them.
        :param coefficients: a `(P, n g)` tensor of effective coefficients.
        :param own_rows: whether every row of a batch owns a copy of its candidate's coefficients,
            `row_coefficients`, by which derivatives are taken. Nothing is left out then.
        """
        self.coefficients = coefficients
        self.own_rows = own_rows
        self.row_coefficients = coefficients[:0]  # (N, n g)
        used = (coefficients != 0).any(0) | own_rows  # (n g,)
        all_used = bool(used.all())  # waits for the device, once
        self.modules: dict[str, StackedModule] = {}
        self.weights: dict[str, torch.Tensor] = {}  # per module (P, R)
        for name, module in modules.items():
            if not all_used:
                module = module.only(used.to(module.coefficient.device))
            if module.rank:
                self.modules[name] = module
                self.weights[name] = _weights_in_dtype(module, coefficients)
        self.owners: int | torch.Tensor = 0
        self.output_rows: torch.Tensor | None = None

    def select(self, candidates: Sequence[int], output_rows: torch.Tensor | None = None) -> None:
        """Say which candidate each row of the next batch belongs to.

        :param candidates: one index of a candidate per row.
        :param output_rows: the row of the batch for each row of the output layer, if they differ.
        """
        self.output_rows = output_rows
        if self.own_rows:
            self._copy_coefficients(candidates)
            return
        first = candidates[0]
        if all(candidate == first for candidate in candidates):
            self.owners = first
            return
        device = None
        if self.weights:
            device = next(iter(self.weights.values())).device
        self.owners = torch.tensor(candidates, device=device)

    @torch.enable_grad()
    def _copy_coefficients(self, candidates: Sequence[int]) -> None:
        """Give each row of the next batch coefficients of its own."""
        self.row_coefficients = self.coefficients[list(candidates)].detach().requires_grad_()
        for name, module in self.modules.items():
            self.weights[name] = _weights_in_dtype(module, self.row_coefficients)
        device = next(iter(self.weights.values())).device
        self.owners = torch.arange(len(candidates), device=device)

    def weights_of_rows(
        self, name: str, rows: int, dims: int, *, output: bool = False
    ) -> torch.Tensor:
        """The channel weights of a module for the rows of its input.

        :param rows: the number of rows of the input.
        :param dims: the number of its dimensions.
        :param output: whether the module is the output layer.
        :return: an `(R,)` tensor if all rows belong to one candidate, else `(rows, ..., R)` with
            `dims` dimensions.
        """
        weights = self.weights[name]  # (P, R)
        owners = self.owners_of_rows(rows, weights.device, output=output)
        if isinstance(owners, int):
            return weights[owners]
        middle = [1] * (dims - 2)
        return weights[owners].view(-1, *middle, weights.shape[1])

    def owners_of_rows(
        self, rows: int, device: torch.device, *, output: bool = False
    ) -> int | torch.Tensor:
        """The candidate of each row of a module's input, or the one of all rows.

        :param rows: the number of rows of the input.
        :param device: of the result.
        :param output: whether the module is the output layer.
        """
        if isinstance(self.owners, int):
            return self.owners
        owners = self.owners.to(device)
        if output and self.output_rows is not None:
            owners = owners[self.output_rows.to(device)]
        # A module's input may be (N C, D) where the batch is (N, C, D).
        if rows > len(owners):
            assert rows % len(owners) == 0, f"found {rows} rows in a batch of {len(owners)}"
            owners = owners.repeat_interleave(rows // len(owners))
        return owners


@contextmanager
def merged(
    model: "PreTrainedModel",
    modules: Mapping[str, StackedModule],
    coefficients: torch.Tensor,
    *,
    own_rows: bool = False,
) -> Iterator[Population]:
    """Inside the block the model computes as if merged; afterwards it is as it was.

    The weights do not change: hooks add the experts' part to the outputs of their modules. A module
    whose own parameters experts change is given others while it runs.

    :param model: the base model.
    :param modules: the experts, as `stack_experts` returns them.
    :param coefficients: an `(n g,)` tensor of effective coefficients, or a `(P, n g)` tensor of
        several candidates.
    :param own_rows: whether derivatives by the coefficients of each row are taken, see
        `Population`.
    :return: the candidates. Every row belongs to the first one until `select` says otherwise.
    """
    population = Population(modules, torch.atleast_2d(coefficients), own_rows=own_rows)
    with ExitStack() as stack:
        parameters = []
        for name, module in population.modules.items():
            if module.is_parameter:
                parameters.append(name)
                continue
            layer = model.get_submodule(name)
            is_output = layer is model.get_output_embeddings()
            hook = _expert_hook(population, name, output=is_output)
            stack.callback(layer.register_forward_hook(hook).remove)
        if parameters:
            stack.enter_context(_parameters_of(model, population, parameters))
        yield population


def _parameters_of(
    model: "PreTrainedModel", population: Population, names: list[str]
) -> AbstractContextManager[None]:
    """Inside the block, modules have the parameters of the candidates of their rows."""

    def parameter_of(name: str, candidate: int) -> torch.Tensor:
        channels = population.weights[name][candidate]
        return merge_weight(model, name, population.modules[name], channels)

    def owners_of(rows: int) -> int | torch.Tensor:
        return population.owners_of_rows(rows, model.device)

    return parameters_by_row(model, names, parameter_of, owners_of)


def merge_weight(
    model: torch.nn.Module,
    name: str,
    module: StackedModule,
    channels: torch.Tensor,
    *,
    original: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight of a layer, or a parameter, with the experts of a candidate.

    :param channels: an `(R,)` tensor, the weights of the channels.
    :param original: what the experts are added to. Defaults to the weight.
    :param out: written to if given.
    """
    if original is None:
        original = weight_of(model, name).detach()
    if keeps_inputs_first(model, name):
        left, right = module.a.mT * channels, module.b.mT
    else:
        left, right = module.b * channels, module.a
    add_product = torch.addmm if left.ndim == 2 else torch.baddbmm
    return add_product(original, left, right, out=out)


def _expert_hook(population: Population, name: str, *, output: bool) -> Callable:
    module = population.modules[name]

    def add_experts(layer, inputs, result):
        given = inputs[0].to(module.a.device)  # from a layer on another device
        if module.embedding:
            middle = torch.nn.functional.embedding(given, module.a.mT)  # (..., R)
            # Gemma scales what it looks up.
            middle = middle * getattr(layer, "embed_scale", 1.0)
        else:
            middle = given @ module.a.mT  # (..., R)
        weights = population.weights_of_rows(name, len(middle), middle.ndim, output=output)
        middle = middle * weights
        if middle.requires_grad or not result.is_contiguous():
            return result + middle @ module.b.mT
        # In place, so that the result is written once.
        result.view(-1, result.shape[-1]).addmm_(middle.flatten(0, -2), module.b.mT)
        return result

    return add_experts


class WeightMerger:
    """Puts one merge after another into the weights of the base, for many tokens per candidate.

    A merge costs one small product per module. Every token then costs what it costs in the base.
    In half precision the merged weights are rounded to their dtype, as those of any merged
    checkpoint are; the unmerged mode (`merged`) keeps the factors apart.
    """

    def __init__(self, model: "PreTrainedModel", modules: Mapping[str, StackedModule]):
        """Keep a copy of the weights that merges change.

        A weight that several layers share, or of another dtype than its factors, does not change.
        `merged_in_place` adds the experts of such modules by hooks.

        :param model: the base model.
        :param modules: the experts, as `stack_experts` returns them.
        """
        self.model = model
        self.modules = modules
        self.weights: dict[str, torch.Tensor] = {}
        self.originals: dict[str, torch.Tensor] = {}
        self.unchanged: dict[str, StackedModule] = {}
        layers_of_weights = _count_layers_of_weights(model)
        for name, module in modules.items():
            weight = weight_of(model, name)
            if weight.dtype != module.a.dtype or layers_of_weights[weight.data_ptr()] > 1:
                self.unchanged[name] = module
                continue
            self.weights[name] = weight
            self.originals[name] = weight.detach().clone()

    @staticmethod
    def bytes_kept(model: torch.nn.Module, modules: Iterable[str]) -> int:
        """The size of the copy for these modules, at most."""
        sizes = {}
        for name in modules:
            weight = weight_of(model, name)
            sizes[id(weight)] = weight.nbytes
        return sum(sizes.values())

    @torch.no_grad()
    def load(self, coefficients: torch.Tensor) -> None:
        """Make the weights those of the merge.

        :param coefficients: an `(n g,)` tensor of effective coefficients.
        """
        for name, weight in self.weights.items():
            module = self.modules[name]
            channels = _weights_in_dtype(module, coefficients)  # (R,)
            original = self.originals[name]
            merge_weight(self.model, name, module, channels, original=original, out=weight.data)

    @torch.no_grad()
    def restore(self) -> None:
        """Make the weights those of the base again, bit for bit."""
        for name, weight in self.weights.items():
            weight.copy_(self.originals[name])


def _count_layers_of_weights(model: torch.nn.Module) -> dict[int, int]:
    """How many layers use each parameter, by its address: an output layer may be the embedding."""
    counts: dict[int, int] = {}
    for layer in model.modules():
        for parameter in layer.parameters(recurse=False):
            address = parameter.data_ptr()
            counts[address] = counts.get(address, 0) + 1
    return counts


@contextmanager
def merged_in_place(merger: WeightMerger, pop: torch.Tensor) -> Iterator[Iterator[None]]:
    """Inside the block, an iterator that makes the model one merge after another.

    Afterwards the model is as it was, bit for bit, also after an error. Weights that cannot be
    changed in place get their experts as in `merged`.

    :param pop: a `(P, n g)` tensor of effective coefficients.
    :return: an iterator of P steps, each of which makes the model the next candidate.
    """

    def load_each() -> Generator[None, None, None]:
        for coefficients in pop:
            merger.load(coefficients)
            with merged(merger.model, merger.unchanged, coefficients):
                yield

    candidates = load_each()
    try:
        yield candidates
    finally:
        candidates.close()
        merger.restore()
