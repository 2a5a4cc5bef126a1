"""Groups of modules: an expert has a coefficient of its own in each.

In the modules of group j a merge is theta_pre + sum_k lambda_kj s_k B_k A_k. Its n g coefficients
stand expert after expert: lambda_kj has the number k g + j. With one group they are the n
coefficients of the paper.

The finest groups are channels. B A is a sum of r products of a column of B and a row of A, and each
is a channel: a merge is theta_pre + sum_k s_k sum_i lambda_ki b_ki a_ki^T in a module.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

# What `group_modules` takes: a name, a function of a module's name, or a table of patterns.
GroupsOf = str | Callable[[str], str] | Mapping[str, str]

CHANNEL = "channel"  # a group for each channel
EVERYTHING = "all"  # the name of the only group
REST = "rest"  # the name of the group of modules that no pattern finds, or that are in no layer
LAYER = re.compile(r"(?P<list>.+?)\.(?P<number>\d+)(?:\.|$)")


@dataclass(frozen=True)
class Groups:
    """Which group each module belongs to.

    :param names: of the g groups.
    :param of_module: the number of the group of each module, by the module's name; with channels,
        the number of its first channel.
    :param by_channel: whether every channel of a module is a group.
    """

    names: tuple[str, ...]
    of_module: Mapping[str, int]
    by_channel: bool = False

    @property
    def count(self) -> int:
        """g."""
        return len(self.names)

    def of_channels(self, module: str, rank: int) -> tuple[int, ...]:
        """The number of the group of each channel that an expert has in a module.

        :param module: its name.
        :param rank: r, how many channels the expert has there.
        """
        first = self.of_module[module]
        return tuple(range(first, first + rank)) if self.by_channel else (first,) * rank

    def expand(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Coefficients that are the same in all groups.

        :param coefficients: a `(..., n)` tensor, one for each expert.
        :return: a `(..., n g)` tensor.
        """
        return coefficients.repeat_interleave(self.count, dim=-1)

    def by_expert(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The coefficients `(..., n g)` of all groups as `(..., n, g)`."""
        return coefficients.unflatten(-1, (-1, self.count))


def group_modules(ranks: Mapping[str, int], groups: GroupsOf = "expert") -> Groups:
    """Put modules into groups.

    :param ranks: the largest rank that an expert has in each module, by the module's name. 1 where
        only whole models change it.
    :param groups: one of

        - `"expert"`: one group, so that an expert has one coefficient;
        - `"layer"`: a group for each decoder layer;
        - `"block:k"`: a group for each k layers in a row;
        - `"module"`: a group for each module;
        - `"channel"`: a group for each channel between A and B of each module. A whole model has no
          channels; in a module it takes the coefficient of the first;
        - a function that gives the name of a module's group;
        - a table of regular expressions by the name of their group: a module belongs to the first
          that is found in its name.

        Modules outside of layers, or that no expression finds, are one more group, `"rest"`.
    :raises ValueError: if `groups` is none of these.
    """
    name_of = check_groups(groups)
    modules = sorted(ranks, key=_in_order_of_layers)
    if groups == CHANNEL:
        return _group_channels({module: ranks[module] for module in modules})
    numbers: dict[str, int] = {}
    of_module = {}
    for module in modules:
        group = name_of(module)
        if not isinstance(group, str):
            raise ValueError(f"groups: expected a name for {module}, found {group!r}")
        of_module[module] = numbers.setdefault(group, len(numbers))
    if isinstance(groups, Mapping):
        _check_patterns_found(groups, numbers)
    return Groups(tuple(numbers), of_module)


def _group_channels(ranks: Mapping[str, int]) -> Groups:
    """A group for each channel.

    :param ranks: by module, in the order of the groups.
    """
    names: list[str] = []
    of_module = {}
    for module, rank in ranks.items():
        of_module[module] = len(names)
        names += [name_of_channel(module, number) for number in range(rank)]
    return Groups(tuple(names), of_module, by_channel=True)


def name_of_channel(module: str, number: int) -> str:
    """The name of the group of a channel.

    :param module: that the channel is in.
    :param number: of the channel there, from 0.
    """
    return f"{module}, channel {number}"


def without_channel(group: str) -> str:
    """The module of a channel by the name of its group; other groups keep their names."""
    return re.sub(r", channel \d+$", "", group)


def check_groups(groups: GroupsOf) -> Callable[[str], str]:
    """The function from the name of a module to the name of its group.

    :raises ValueError: if `groups` says none.
    """
    if callable(groups):
        return groups
    if isinstance(groups, Mapping):
        return _by_patterns(groups)
    if groups == "expert":
        return lambda module: EVERYTHING
    if groups in ("module", CHANNEL):
        return lambda module: module
    if groups == "layer":
        return lambda module: _block_of(module, 1)
    block = re.fullmatch(r"block:([1-9]\d*)", groups) if isinstance(groups, str) else None
    if block is None:
        raise ValueError(
            'groups: expected "expert", "layer", "block:k" with a number of layers, "module", '
            f'"channel", a function or a table of patterns, found {groups!r}'
        )
    size = int(block[1])
    return lambda module: _block_of(module, size)


def _check_patterns_found(table: Mapping[str, str], found: Iterable[str]) -> None:
    for group, pattern in table.items():
        if group not in found:
            raise ValueError(
                f"groups: expected modules of experts that {pattern!r} finds for {group!r} before "
                "another pattern does, found none"
            )


def _by_patterns(table: Mapping[str, str]) -> Callable[[str], str]:
    """The name of the first pattern that is found in the name of a module."""
    if REST in table:
        raise ValueError(
            f"groups: expected other names than {REST!r}, which is the group of all other modules"
        )
    patterns = {}
    for group, pattern in table.items():
        try:
            patterns[group] = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"groups: expected a regular expression for {group!r}, found {pattern!r}: {error}"
            ) from error

    def name_of(module: str) -> str:
        for group, pattern in patterns.items():
            if pattern.search(module):
                return group
        return REST

    return name_of


def _block_of(module: str, size: int) -> str:
    """The name of the block of layers that a module is in, as `model.layers.4-7`."""
    layer = LAYER.match(module)
    if layer is None:
        return REST
    first = int(layer["number"]) // size * size
    last = f"-{first + size - 1}" if size > 1 else ""
    return f"{layer['list']}.{first}{last}"


def _in_order_of_layers(module: str) -> list[tuple[int, str]]:
    """The key that sorts layer 10 behind layer 9."""
    parts = []
    for part in module.split("."):
        parts.append((int(part), "") if part.isdigit() else (-1, part))
    return parts
