"""Numbers as a line of bars, and one number as a bar: a character each."""

import math
from collections.abc import Sequence

HEIGHTS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"


def sparkline(values: Sequence[float], width: int, take=max) -> str:
    """The course of numbers as bars from the lowest to the highest.

    :param values: numbers; those that are not finite count as the lowest.
    :param width: the most characters. Neighbours share one where there are more numbers.
    :param take: the number that neighbours come to.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    low, high = min(finite), max(finite)
    bars = ""
    count = min(width, len(values))
    for place in range(count):
        first, last = place * len(values) // count, (place + 1) * len(values) // count
        known = [value for value in values[first:last] if math.isfinite(value)]
        share = (take(known) - low) / (high - low) if known and high > low else 0.0
        bars += HEIGHTS[round(share * (len(HEIGHTS) - 1))]
    return bars


def bar(share: float, width: int) -> str:
    """A share of 1 as a bar, in eighths of a character.

    :param share: from 0 to 1; what is beyond is cut.
    :param width: characters of a whole.
    """
    if not math.isfinite(share):
        return ""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (EIGHTHS[rest] if rest else "")


def mean(values: Sequence[float]) -> float:
    """The mean of some numbers, for `sparkline`."""
    return sum(values) / len(values)
