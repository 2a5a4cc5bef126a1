"""A case of the comparison: one method with one seed, and where its files are."""

from dataclasses import dataclass
from pathlib import Path

RUNS = Path("runs/compare")
BUDGET = 160


def default_pop_size(n: int) -> int:
    """20, as published, but no fewer than base, experts and average.

    Swarms never leave the span of their first points.
    """
    return max(20, n + 2)


@dataclass(frozen=True)
class Case:
    """What is searched, how, and with how many evaluations."""

    suite: str
    """`"synthetic"` or `"smollm2"`."""
    method: str
    """A key of `METHODS`."""
    seed: int
    """Of the search; seeds from 100 on were for trying things out."""
    n: int
    """Experts."""
    budget: int = BUDGET
    """Evaluations, unless the method has a budget of its own."""
    pop_size: int = 20
    """P, unless the method has one of its own."""
    control: str = ""
    """`"random"`: adapters of random numbers of the same norms. `"shuffled"`: the answers of dev
    are wrong."""
    resampled_dev: bool = False
    """Whether the seed draws dev and test questions, the same for all methods. Else there is one
    set for all seeds."""
    regmean: str = ""
    """What experts are regressed on for a search around the RegMean merge: `"tasks"`, each on its
    own dev questions with answers; `"prompts"`, all on all dev questions without answers;
    `"weights"`, on no text. `""` is the search of the experts as they are."""
    keep_experts: bool = False
    """Whether the search has the experts as they are beside those of RegMean."""
    limit: bool = False
    """Whether the search has the test questions themselves, as its limit. Experts are regressed on
    their own dev questions all the same."""
    dev_examples: int = 0
    """Dev questions a task; 0 for the number of the suite."""
    threads: int = 1
    """Of the process."""

    @property
    def dimension(self) -> int:
        """How many experts the search has, with `keep_experts` twice as many as were read."""
        return 2 * self.n if self.keep_experts else self.n

    @property
    def setting(self) -> str:
        """The name of the folder that holds all cases of this setting."""
        parts = [f"n{self.n}", str(self.budget)]
        if self.control:
            parts.append(self.control)
        if self.pop_size != default_pop_size(self.dimension):
            parts.append(f"P{self.pop_size}")
        if self.resampled_dev:
            parts.append("resampled")
        if self.dev_examples:
            parts.append(f"dev{self.dev_examples}")
        if self.regmean:
            parts.append("regmean" if self.regmean == "tasks" else f"regmean_{self.regmean}")
        if self.keep_experts:
            parts.append("beside")
        if self.limit:
            parts.append("limit")
        return "_".join(parts)

    def file(self, runs: Path, suffix: str) -> Path:
        """One of its files, in a folder of runs."""
        return runs / self.suite / self.setting / f"{self.method}_seed{self.seed}{suffix}"
