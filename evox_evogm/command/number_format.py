"""Scores as all tables and sentences show them: three decimals, without the 0 before the point."""

import math


def short(number: float) -> str:
    """A number with three decimals. What is shown as 0 has no sign."""
    text = f"{abs(number):.3f}".removeprefix("0")
    return f"-{text}" if number < 0 and text != ".000" else text


def with_error(score: float, error: float) -> str:
    """A score and its standard error, where that is known."""
    return f"{short(score)} ± {short(error)}" if math.isfinite(error) else short(score)
