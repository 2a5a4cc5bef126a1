"""P candidates of one batch: which candidate each row belongs to, and its channels' weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from evox_evogm.problems.adapters.shared_inputs import SharedInput, find_shared_inputs
from evox_evogm.problems.adapters.stacked_modules import (
    StackedModule,
    bytes_of_copies,
    factors_of_layers,
    weights_of_modules,
    with_used_channels,
)
from evox_evogm.problems.to_device import to_device


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
        self.owners = to_device(torch.tensor(candidates), device)

    @torch.enable_grad()
    def _copy_coefficients(self, candidates: Sequence[int]) -> None:
        """Give each row of the next batch coefficients of its own."""
        device = next(iter(self.weights.values())).device
        of_rows = self.coefficients[list(candidates)].detach()
        self.row_coefficients = of_rows.to(device).requires_grad_()
        self.weights = weights_of_modules(self.modules, self.row_coefficients)
        self._joined_weights.clear()
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
        elif self.own_rows and rows == len(weights) and (not output or self.output_rows is None):
            of_rows = weights  # as the backward pass of an index is dear on a GPU
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
            owners = owners[to_device(self.output_rows, device)]
        # A module's input may be (N C, D) where the batch is (N, C, D).
        if rows > len(owners):
            assert rows % len(owners) == 0, f"found {rows} rows in a batch of {len(owners)}"
            owners = owners.repeat_interleave(rows // len(owners))
        return owners
