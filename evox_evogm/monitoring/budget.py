"""How much a search may use: a number of evaluations, or a time such as `20min`."""

import re
from dataclasses import dataclass

SECONDS = {"s": 1, "min": 60, "h": 3600}
EXPECTED = "a whole number of evaluations, or a time such as 20min"


@dataclass(frozen=True)
class Budget:
    """One of two limits; the other is None. Both are None where a search has no limit.

    :param evaluations: of merged models.
    :param seconds: of the search, over all of its processes. The step in progress is finished.
    """

    evaluations: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        if self.evaluations is not None:
            return "1 evaluation" if self.evaluations == 1 else f"{self.evaluations} evaluations"
        assert self.seconds is not None
        return f"{self.seconds / 60:.4g} min"


def parse_budget(value: int | str) -> Budget:
    """The budget of a setting.

    :param value: a number of evaluations, or a number with one of the units s, min and h.
    :raises ValueError: if it is neither.
    """
    if isinstance(value, int):
        if value < 1:
            raise ValueError(f"budget: expected at least 1, found {value}")
        return Budget(evaluations=value)
    if value.strip().isdecimal():
        return parse_budget(int(value))
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)\s*", value)
    if found is None:
        raise ValueError(f"budget: expected {EXPECTED}, found {value!r}")
    seconds = float(found[1]) * SECONDS[found[2]]
    if not 0 < seconds < 1e9:
        raise ValueError(f"budget: expected more than no time, and years at most, found {value!r}")
    return Budget(seconds=seconds)
