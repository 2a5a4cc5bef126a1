"""Layers that are given the same tensor, such as q, k and v: one product makes all their channels.

Which layers these are is guessed from their names, and checked in every pass: channels are used
for the very tensor only that they were made of. A guess that was wrong is dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

# Last parts of the names of layers that one module holds and gives the same tensor.
SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("wi_0", "wi_1"),
    ("w1", "w3"),
)

# Gives the channels `(..., R)` of an input, by A `(R, D_in)` and the names of its layers.
MakeChannels = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]


class JoinedFactors(NamedTuple):
    """A of layers that are probably given the same tensor, one below the other.

    :param names: of the layers.
    :param a: an `(R, D_in)` tensor.
    """

    names: tuple[str, ...]
    a: torch.Tensor


class Made(NamedTuple):
    """The channels that some layers of a group have not taken yet.

    :param number: of the pass.
    :param given: the input that they were made of.
    :param version: of the input; it counts what was written to it.
    :param channels: `(..., R)` of all layers of the group.
    :param waiting: the names of the layers that have not taken theirs.
    """

    number: int
    given: torch.Tensor
    version: int
    channels: torch.Tensor
    waiting: set[str]

    def are_for(self, name: str, given: torch.Tensor, number: int) -> bool:
        """Whether a layer may take its channels."""
        same = self.given is given and self.version == given._version and self.number == number
        return same and name in self.waiting


class SharedInput:
    """A group of layers that are probably given the same tensor.

    :param names: of the layers.
    :param factors: A of each of them, an `(R_i, D_in)` tensor.
    :param joined: the tensor whose rows these are, in this order. Without it they are copied.
    """

    def __init__(
        self,
        names: Sequence[str],
        factors: Sequence[torch.Tensor],
        joined: torch.Tensor | None = None,
    ):
        self.names = tuple(names)
        self.is_copy = joined is None
        self.a = torch.cat(list(factors)) if joined is None else joined  # (R, D_in)
        self.places: dict[str, slice] = {}  # of the channels of each layer
        end = 0
        for name, factor in zip(names, factors, strict=True):
            self.places[name] = slice(end, end + len(factor))
            end += len(factor)
        self.is_right = True
        self.made: Made | None = None

    def channels(
        self, name: str, given: torch.Tensor, number: int, make: MakeChannels
    ) -> torch.Tensor:
        """The channels `(..., R_i)` of one of the layers.

        :param given: its input.
        :param number: of the pass.
        :param make: makes channels where there are none to take.
        """
        made, self.made = self.made, None
        place = self.places[name]
        if made is not None and made.are_for(name, given, number):
            made.waiting.remove(name)
            if made.waiting:
                self.made = made
            return made.channels[..., place]
        # Channels that no layer took were made in vain.
        self.is_right = self.is_right and made is None and not given.is_inference()
        if not self.is_right:
            return make(self.a[place], (name,))
        channels = make(self.a, self.names)
        self.made = Made(number, given, given._version, channels, set(self.names) - {name})
        return channels[..., place]


def find_shared_inputs(
    factors: Mapping[str, torch.Tensor], joined: Mapping[str, JoinedFactors] | None = None
) -> dict[str, SharedInput]:
    """The groups of two layers or more, by the names of their layers.

    :param factors: A of each layer by its name, an `(R_i, D_in)` tensor.
    :param joined: what stands one below the other already, by the names of the layers.
    """
    found: dict[str, SharedInput] = {}
    for names in layers_with_same_input(factors):
        whole = None if joined is None else joined.get(names[0])
        if whole is not None and set(whole.names) == set(names):
            parts = [factors[name] for name in whole.names]
            group = SharedInput(whole.names, parts, whole.a)
        else:
            group = SharedInput(names, [factors[name] for name in names])
        found |= dict.fromkeys(names, group)
    return found


def layers_with_same_input(factors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """The names of two layers or more that are probably given the same tensor, group by group.

    :param factors: A of each layer by its name, an `(R_i, D_in)` tensor.
    """
    groups: dict[tuple, list[str]] = {}
    for name, factor in factors.items():
        holder, _, last = name.rpartition(".")
        for number, together in enumerate(SAME_INPUT):
            if last in together:
                key = (holder, number, factor.shape[1], factor.dtype, factor.device)
                groups.setdefault(key, []).append(name)
    return [names for names in groups.values() if len(names) > 1]
