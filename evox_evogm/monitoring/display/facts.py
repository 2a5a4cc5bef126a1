"""What stays the same while a search runs, as displays show it."""

from collections.abc import Sequence
from typing import NamedTuple

from evox_evogm.monitoring.expert_means import means_by_expert


class RunFacts(NamedTuple):
    """The names of what a search works on."""

    experts: Sequence[str]
    """In the order of coefficients; none where these are coordinates of a function."""
    groups: int
    """g: an expert has so many coefficients, one after another."""
    findings: Sequence[str]
    """What the probe of the base found, and what else was noted, a line each."""

    used: Sequence[bool] = ()
    """For each of the n g coefficients whether it weighs anything; all do without it."""

    def by_expert(self, coefficients: Sequence[float]) -> dict[str, float]:
        """The coefficient of every expert, its mean over groups.

        Without experts every coordinate, as x1, x2 and so on.

        :param coefficients: the n g of a record.
        """
        if not self.experts:
            return {f"x{number}": value for number, value in enumerate(coefficients, 1)}
        return means_by_expert(coefficients, self.experts, self.groups, self.used)
