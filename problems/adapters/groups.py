"""Groups of modules: an expert has a coefficient of its own in each.

In the modules of group j a merge is theta_pre + sum_k lambda_kj s_k B_k A_k. Its n g coefficients
stand expert after expert: lambda_kj has the number k g + j. With one group they are the n
coefficients of the paper.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

# What `group_modules` takes: a name, a function of a module's name, or a table of patterns.
GroupsOf = str | Callable[[str], str] | Mapping[str, str]

EVERYTHING = "all"  # the name of the only group
REST = "rest"  # the name of the group of modules that no pattern finds, or that are in no layer
LAYER = re.compile(r"(?P<list>.+?)\.(?P<number>\d+)(?:\.|$)")


@dataclass(frozen=True)
class Groups:
    """Which group each module belongs to.

    :param names: of the g groups.
    :param of_module: the number of the group of each module, by the module's name.
    """

    names: tuple[str, ...]
    of_module: Mapping[str, int]

    @property
    def count(self) -> int:
        """g."""
        return len(self.names)

    def expand(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Coefficients that are the same in all groups.

        :param coefficients: a `(..., n)` tensor, one for each expert.
        :return: a `(..., n g)` tensor.
        """
        return coefficients.repeat_interleave(self.count, dim=-1)

    def by_expert(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The coefficients `(..., n g)` of all groups as `(..., n, g)`."""
        return coefficients.unflatten(-1, (-1, self.count))


def group_modules(modules: Iterable[str], groups: GroupsOf = "expert") -> Groups:
    """Put modules into groups.

    :param modules: the names of all modules that experts change.
    :param groups: one of

        - `"expert"`: one group, so that an expert has one coefficient;
        - `"layer"`: a group for each decoder layer;
        - `"block:k"`: a group for each k layers in a row;
        - `"module"`: a group for each module;
        - a function that gives the name of a module's group;
        - a table of regular expressions by the name of their group: a module belongs to the first
          that is found in its name.

        Modules outside of layers, or that no expression finds, are one more group, `"rest"`.
    :raises ValueError: if `groups` is none of these.
    """
    names = sorted(modules, key=_in_order_of_layers)
    name_of = check_groups(groups)
    numbers: dict[str, int] = {}
    of_module = {}
    for module in names:
        group = name_of(module)
        if not isinstance(group, str):
            raise ValueError(f"groups: expected a name for {module}, found {group!r}")
        of_module[module] = numbers.setdefault(group, len(numbers))
    if isinstance(groups, Mapping):
        _check_patterns_found(groups, numbers)
    return Groups(tuple(numbers), of_module)


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
    if groups == "module":
        return lambda module: module
    if groups == "layer":
        return lambda module: _block_of(module, 1)
    block = re.fullmatch(r"block:([1-9]\d*)", groups) if isinstance(groups, str) else None
    if block is None:
        raise ValueError(
            'groups: expected "expert", "layer", "block:k" with a number of layers, "module", a '
            f"function or a table of patterns, found {groups!r}"
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
