"""What a function of the user's own returned, as numbers by example, or why it cannot be used."""

import math
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any, NamedTuple

import torch

KEYS = ("scores", "margins")
EXPECTED = "a number, a list of numbers, or a table with lists scores and margins"


class Returned(NamedTuple):
    """The scores of one merge by example, and its margins."""

    scores: list[float]
    """S numbers, higher is better."""
    margins: list[float] | None
    """S numbers, above 0 where the score is 1; None if only scores were returned."""


def parse_returned(value: Any) -> Returned:
    """What a function returned of one merge.

    :raises ValueError: if it is something else than a score, scores, or scores and margins, or if a
        number is not finite, in a part of a sentence.
    """
    if not isinstance(value, Mapping):
        return Returned(check_finite("a score", to_numbers(value)), None)
    if set(value) != set(KEYS):
        found = f"found a table with {', '.join(map(str, value)) or 'nothing'}"
        raise ValueError(f"expected {EXPECTED}, {found}")
    scores = check_finite("a score", to_numbers(value["scores"]))
    margins = check_finite("a margin", to_numbers(value["margins"]))
    check_signs(scores, margins)
    return Returned(scores, margins)


def parse_population(value: Any, count: int) -> list[Any]:
    """What a function returned of a population, merge by merge.

    :param count: P.
    :raises ValueError: if it is not one entry for each merge.
    """
    if isinstance(value, Mapping) and set(value) == set(KEYS):
        columns = [parse_population(value[key], count) for key in KEYS]
        return [dict(zip(KEYS, row, strict=True)) for row in zip(*columns, strict=True)]
    entries = as_list(value)
    if not isinstance(entries, (list, tuple)) or len(entries) != count:
        expected = f"expected an entry for each of {count} merges"
        raise ValueError(f"{expected}, found {describe(value)}")
    return list(entries)


def as_list(value: Any) -> Any:
    """Tensors and arrays as numbers or nested lists; other values as they are."""
    return value.tolist() if hasattr(value, "tolist") else value


def to_numbers(value: Any) -> list[float]:
    """A number, or some, as a list.

    :raises ValueError: if it is something else.
    """
    value = as_list(value)
    numbers = value if isinstance(value, (list, tuple)) else [value]
    found = []
    for number in numbers:
        number = as_list(number)
        if not isinstance(number, Number) or isinstance(number, complex):
            raise ValueError(f"expected {EXPECTED}, found {describe(value)}")
        found.append(float(number))  # type: ignore[arg-type]
    if not found:
        raise ValueError(f"expected {EXPECTED}, found an empty list")
    return found


def describe(value: Any) -> str:
    """A value in the words of an error message."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {tuple(shape)}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)} beginning with {value[:1]!r:.60}"
    return f"{value!r:.60}"


def check_finite(what: str, numbers: list[float]) -> list[float]:
    """The numbers, if all are finite.

    :raises ValueError: naming the first that is not.
    """
    for place, number in enumerate(numbers):
        if not math.isfinite(number):
            where = f" in place {place}" if len(numbers) > 1 else ""
            raise ValueError(f"expected {what} that is finite, found {number}{where}")
    return numbers


def check_signs(scores: Sequence[float], margins: Sequence[float]) -> None:
    """Refuse margins that are not one for each score, and above 0 where the score is 1.

    :raises ValueError: naming the first that is not.
    """
    if len(scores) != len(margins):
        expected = f"expected a margin for each of {len(scores)} scores"
        raise ValueError(f"{expected}, found {len(margins)}")
    for place, (score, margin) in enumerate(zip(scores, margins, strict=True)):
        if score not in (0.0, 1.0) or (margin > 0) != (score == 1.0):
            expected = (
                "expected with margins scores of 1 where the margin is above 0, and else of 0"
            )
            found = f"found score {score} and margin {margin} in place {place}"
            raise ValueError(f"{expected}, {found}")
