"""The exact merge: theta(lambda) = theta_pre + sum_k lambda_k s_k B_k A_k, without dense deltas.

The factors of all experts are stacked once per module: A = [A_1; ...; A_n], B = [B_1, ..., B_n].
A candidate only scales the channels between A and B: y = x W^T + ((x A^T) * c) B^T, with
c = repeat(lambda_k s_k, r_k). An expert may have a coefficient per group of modules
(`groups.py`). There are two modes.

- Unmerged (`merged`): hooks add the experts' part, and the rows of one batch may belong to
  different candidates. Layers with the same input share a product (`shared_inputs.py`).
  Parameters that are no weights of layers go to the rows of their candidates
  (`candidate_parameters.py`).
- Merged (`WeightMerger`): one candidate goes into the weights, and every token then costs what it
  costs in the base.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.candidate_parameters import parameters_by_row
from evox_evogm.problems.adapters.layers import keeps_inputs_first, weight_of
from evox_evogm.problems.adapters.shared_inputs import SharedInput, find_shared_inputs
from evox_evogm.problems.adapters.stacked_modules import (
    StackedModule,
    bytes_of_copies,
    factors_of_layers,
    weights_of_modules,
    with_used_channels,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        self.modules = dict(modules)
        if not bool(used.all()):  # waits for the device, once
            self.modules = with_used_channels(modules, used)
        self.weights = weights_of_modules(self.modules, coefficients)  # per module (P, R)
        self.shared_inputs = self._join_inputs()
        self.bytes_copied = bytes_of_copies(self.modules, modules)  # of factors
        self.owners: int | torch.Tensor = 0
        self.output_rows: torch.Tensor | None = None
        self.passes = 0
        self._candidates: list[int] = []  # of the rows of the batch
        self._joined_weights: dict[tuple, tuple[list[torch.Tensor], torch.Tensor]] = {}
        self._row_weights: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    def _join_inputs(self) -> dict[str, SharedInput]:
        """Groups of layers that are probably given the same tensor. They hold A of their layers."""
        joined = {}
        for name, module in self.modules.items():
            if module.joined is not None:
                joined[name] = module.joined
        groups = find_shared_inputs(factors_of_layers(self.modules), joined)
        for name, group in groups.items():
            if group.is_copy:
                self.modules[name] = replace(self.modules[name], a=group.a[group.places[name]])
        return groups

    def select(self, candidates: Sequence[int], output_rows: torch.Tensor | None = None) -> None:
        """Say which candidate each row of the next batch belongs to.

        :param candidates: one index of a candidate per row.
        :param output_rows: the row of the batch for each row of the output layer, if they differ.
        """
        self.passes += 1
        same_outputs = output_rows is None and self.output_rows is None
        if same_outputs and not self.own_rows and self._candidates == candidates:
            return  # as in the last pass, such as while decoding
        self._candidates = list(candidates)
        self._row_weights.clear()
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
        self.weights = weights_of_modules(self.modules, self.row_coefficients)
        self._joined_weights.clear()
        device = next(iter(self.weights.values())).device
        self.owners = torch.arange(len(candidates), device=device)

    def weights_of_rows(
        self, name: str | Sequence[str], rows: int, dims: int, *, output: bool = False
    ) -> torch.Tensor:
        """The channel weights of a module for the rows of its input.

        :param name: of the module, or the names of several with the same input, whose channels
            stand side by side.
        :param rows: the number of rows of the input.
        :param dims: the number of its dimensions.
        :param output: whether the module is the output layer.
        :return: an `(R,)` tensor if all rows belong to one candidate, else `(rows, ..., R)` with
            `dims` dimensions.
        """
        weights = self._weights_of([name] if isinstance(name, str) else name)  # (P, R)
        if isinstance(self.owners, int):
            return weights[self.owners]
        key = (id(weights), rows, output)
        if key in self._row_weights:
            of_rows = self._row_weights[key][1]
        else:
            of_rows = weights[self.owners_of_rows(rows, weights.device, output=output)]
            if not of_rows.requires_grad:
                self._row_weights[key] = weights, of_rows
        middle = [1] * (dims - 2)
        return of_rows.view(-1, *middle, weights.shape[1])

    def _weights_of(self, names: Sequence[str]) -> torch.Tensor:
        """The weights `(P, R)` of the channels of some modules, side by side."""
        parts = [self.weights[name] for name in names]
        if len(parts) == 1:
            return parts[0]
        key = tuple(id(part) for part in parts)
        if key not in self._joined_weights:
            self._joined_weights[key] = parts, torch.cat(parts, -1)  # parts stay, so their ids do
        return self._joined_weights[key][1]

    def channels(
        self, layer: torch.nn.Module, name: str, given: torch.Tensor, *, output: bool = False
    ) -> torch.Tensor:
        """The weighted channels `(..., R)` of a layer: `(x A^T) * c`.

        :param given: x, its input.
        :param output: whether it is the output layer.
        """
        module = self.modules[name]
        if module.embedding:
            found = torch.nn.functional.embedding(given.to(module.a.device), module.a.mT)
            # Gemma scales what it looks up.
            found = found * getattr(layer, "embed_scale", 1.0)
            return found * self.weights_of_rows(name, len(found), found.ndim, output=output)

        def make(a: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
            rows = given.to(a.device).reshape(-1, given.shape[-1])  # may be on another device
            found = (rows @ a.mT).view(*given.shape[:-1], len(a))
            weights = self.weights_of_rows(names, len(found), found.ndim, output=output)
            if found.requires_grad or weights.requires_grad:
                return found * weights
            return found.mul_(weights)

        # Derivatives may run layers again, in parts.
        if name in self.shared_inputs and not torch.is_grad_enabled():
            return self.shared_inputs[name].channels(name, given, self.passes, make)
        return make(module.a, (name,))

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
        channels = population.channels(layer, name, inputs[0], output=output)  # (..., R)
        if channels.requires_grad or not result.is_contiguous():
            return result + channels @ module.b.mT
        # In place, so that the result is written once.
        result.view(-1, result.shape[-1]).addmm_(channels.flatten(0, -2), module.b.mT)
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
        changed = {name: self.modules[name] for name in self.weights}
        channels = weights_of_modules(changed, coefficients)  # per module (R,)
        for name, module in changed.items():
            original, weight = self.originals[name], self.weights[name].data
            merge_weight(self.model, name, module, channels[name], original=original, out=weight)

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
