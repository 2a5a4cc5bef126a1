"""Scores as all tables and sentences show them: three decimals, without the 0 before the point."""

import math


def short(number: float) -> str:
    """A number with three decimals. What is shown as 0 has no sign."""
    text = f"{abs(number):.3f}".removeprefix("0")
    return f"-{text}" if number < 0 and text != ".000" else text


def with_error(score: float, error: float) -> str:
    """A score or a difference, and its standard error where that is known.

    Values without any spread, such as differences that are all equal, have an error of 0, which
    says nothing about other examples: it is not shown.
    """
    return f"{short(score)} ± {short(error)}" if is_shown(error) else short(score)


def is_shown(error: float) -> bool:
    """Whether a standard error is a finite number above 0."""
    return math.isfinite(error) and error > 0
