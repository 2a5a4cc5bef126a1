"""Modules whose own parameters experts change, in a batch of several candidates.

A hook can add to the output of a layer. The experts of a mixture have no layer each, so the module
that holds their parameters runs once for each candidate of the batch, with the candidate's
parameters and rows.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from evox_evogm.problems.adapters.layers import split_name

# Gives the parameter of a name for a candidate.
ParameterOf = Callable[[str, int], torch.Tensor]
# Gives the candidate of each of some rows, or the one candidate of all rows.
OwnersOf = Callable[[int], int | torch.Tensor]


@contextmanager
def parameters_by_row(
    model: torch.nn.Module, names: list[str], parameter_of: ParameterOf, owners_of: OwnersOf
) -> Iterator[None]:
    """Inside the block, the rows of a batch see the parameters of their candidates.

    :param names: of the parameters that differ between candidates.
    :param parameter_of: takes a name and a candidate.
    :param owners_of: takes the number of rows of a module's input.
    """
    held: dict[torch.nn.Module, dict[str, str]] = {}  # by module, the full names by the last parts
    for name in names:
        holder, last = split_name(model, name)
        held.setdefault(holder, {})[last] = name
    fixed = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    before = {}
    try:
        for holder, full_names in held.items():
            before[holder] = holder.__dict__.get("forward")
            holder.forward = _forward_by_row(holder, full_names, parameter_of, owners_of, fixed)
        yield
    finally:
        for holder, forward in before.items():
            if forward is None:
                del holder.forward
            else:
                holder.forward = forward


def _forward_by_row(
    holder: torch.nn.Module,
    full_names: Mapping[str, str],
    parameter_of: ParameterOf,
    owners_of: OwnersOf,
    fixed: set[int],
) -> Callable[..., Any]:
    """A forward pass of a module that runs once for each candidate of its rows.

    :param fixed: the storages of the model's own tensors. An input of these, such as a bias of
        scores, has no row per text, whatever its length.
    """
    forward = holder.forward

    def take(value, places: torch.Tensor, rows: int):
        is_fixed = torch.is_tensor(value) and _storage(value) in fixed
        return value if is_fixed else _take(value, places, rows)

    def run(candidate: int, inputs, named):
        changed = {}
        for last, name in full_names.items():
            changed[last] = parameter_of(name, candidate)
        with _swapped(holder, changed):
            return forward(*inputs, **named)

    def forward_by_row(*inputs, **named):
        first = next(value for value in (*inputs, *named.values()) if torch.is_tensor(value))
        rows = len(first)
        owners = owners_of(rows)
        if isinstance(owners, int):
            return run(owners, inputs, named)
        parts = []
        for candidate in owners.unique().tolist():
            places = (owners == candidate).nonzero().flatten()
            own_inputs = [take(value, places, rows) for value in inputs]
            own_named = {key: take(value, places, rows) for key, value in named.items()}
            parts.append((places, run(candidate, own_inputs, own_named)))
        return _put_together(parts, rows)

    return forward_by_row


@contextmanager
def _swapped(holder: torch.nn.Module, parameters: Mapping[str, torch.Tensor]):
    """Inside the block a module has other parameters, which may be results of a computation."""
    before = {last: holder._parameters[last] for last in parameters}
    held: dict[str, Any] = holder._parameters
    held.update(parameters)
    try:
        yield
    finally:
        holder._parameters.update(before)


def _storage(tensor: torch.Tensor) -> int:
    """The address of the memory that a tensor and its views have."""
    return tensor.untyped_storage().data_ptr()


def _take(value, places: torch.Tensor, rows: int):
    """Some rows of a tensor that has all of them; anything else as it is."""
    if torch.is_tensor(value) and value.ndim and len(value) == rows:
        return value[places.to(value.device)]
    return value


def _put_together(parts: list[tuple[torch.Tensor, Any]], rows: int):
    """One output of all rows from the outputs of some rows each: a tensor, or a tuple of such.

    Of an input (N, C, D), routers give an output (N C, E).
    """
    first = parts[0][1]
    if isinstance(first, (tuple, list)):
        columns = []
        for index in range(len(first)):
            column = [(places, output[index]) for places, output in parts]
            columns.append(_put_together(column, rows))
        return type(first)(columns)
    times = len(first) // len(parts[0][0])  # rows of the output for each of the input
    whole = first.new_empty((rows, times, *first.shape[1:]))
    for places, output in parts:
        whole[places.to(whole.device)] = output.unflatten(0, (-1, times))
    return whole.flatten(0, 1)
