"""Numbers as the report shows them."""

import math
import re

from evox_evogm.command import number_format

MINUS = "\N{MINUS SIGN}"


def short(score: float) -> str:
    """A score with three decimals, without the 0 before the point."""
    return number_format.short(score).replace("-", MINUS)


def signed(value: float) -> str:
    """A difference or a coefficient with its sign."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", MINUS)


def with_error(value: float, error: float) -> str:
    """A score and its standard error, where that is known."""
    if math.isnan(value):
        return "none"
    return number_format.with_error(value, error).replace("-", MINUS)


def with_minus(text: str) -> str:
    """A text of the run's other reports, with a minus sign before numbers."""
    return re.sub(r"(?<![\w.])-(?=\.?\d)", MINUS, text)


def percent(share: float) -> str:
    """A share as a whole number of percent, between 0 and 100."""
    return f"{100 * min(1.0, max(0.0, share)):.0f}%"


def duration(seconds: float) -> str:
    """A time in the unit that a reader would choose."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
