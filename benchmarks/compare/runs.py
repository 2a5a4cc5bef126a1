"""The runs of one setting as tables."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

TRIALS = 100  # seeds from here on were for trying things out
RUN = ["method", "seed"]
TEST_OF_BEST = "test of the best on dev"
DETAILS = ("evaluations", "seconds", "seconds of evaluation", "dtype", "commit")


@dataclass(frozen=True)
class Runs:
    """Runs of several methods under one setting."""

    results: pd.DataFrame
    """A row a run, by method and seed.

    dev: the best score found.
    test: the score of the recommended point.
    test of the best on dev: the score of the best evaluated point.
    And the `DETAILS`.
    """
    curves: pd.DataFrame
    """A row a full evaluation, by method, seed and number.

    best: the best dev score until then.
    seconds: since the start.
    """
    tasks: pd.DataFrame
    """A row a run, by method and seed: the test score of every task."""

    @property
    def methods(self) -> list[str]:
        return list(self.results.index.unique("method"))

    def of(self, methods: Iterable[str]) -> "Runs":
        """The runs of some methods, in this order; those without runs are left out."""
        present = [name for name in methods if name in self.methods]
        return Runs(
            pick_methods(self.results, present),
            pick_methods(self.curves, present),
            pick_methods(self.tasks, present),
        )

    def of_group(self, groups: dict[str, str], group: str) -> "Runs":
        """The runs of a group's methods, in the order of `groups`."""
        return self.of(name for name, its_group in groups.items() if its_group == group)

    def scores(self, method: str, split: str) -> pd.Series:
        """Final scores of a method on `"dev"` or `"test"`, by seed."""
        return self.results[split].loc[method]

    def seeds(self) -> pd.Series:
        """The number of runs of every method."""
        return self.results.groupby("method", sort=False).size()

    def evaluations(self) -> pd.Series:
        """Full evaluations that a run of every method uses."""
        numbers = self.curves.index.to_frame(index=False)
        return numbers.groupby("method", sort=False)["evaluation"].max()

    def best_at(self, evaluation: int) -> pd.Series:
        """The mean over seeds of the best dev score after so many evaluations, by method."""
        until = self.curves.index.get_level_values("evaluation") <= evaluation
        best = self.curves[until].groupby(RUN, sort=False)["best"].max()
        return best.groupby("method", sort=False).mean()


def pick_methods(table: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Rows of some methods, in this order."""
    if not methods:
        return table.iloc[:0]
    return pd.concat([table.xs(name, level="method", drop_level=False) for name in methods])


def read_runs(folder: Path) -> Runs | None:
    """The runs of a folder by method and seed, or None if it has none."""
    results, tasks, curves = [], [], []
    for path in folder.glob("*_seed*.json"):
        result = json.loads(path.read_text())
        if result["seed"] >= TRIALS:
            continue
        run = {name: result[name] for name in RUN}
        curve = read_curve(path.with_suffix(".csv"))
        test = {"test": result["test"], TEST_OF_BEST: result.get(TEST_OF_BEST)}
        details = {name: result.get(name, "?") for name in DETAILS}
        best = curve["best"].iloc[-1]
        if result.get("minibatches", 1) > 1:  # only the recommended point has a dev score
            best = result["dev"]
        results.append({**run, "dev": best, **test, **details})
        tasks.append({**run, **result["test by task"]})
        curves.append(curve.assign(**run))
    if not results:
        return None
    return Runs(
        pd.DataFrame(results).set_index(RUN).sort_index(),
        pd.concat(curves).set_index([*RUN, "evaluation"]).sort_index(),
        pd.DataFrame(tasks).set_index(RUN).sort_index(),
    )


def read_curve(path: Path) -> pd.DataFrame:
    """A row for every full evaluation: its number, the best dev score until then, and the seconds.

    Of pruned merges, fractions of an evaluation were used: the row is that of the last one inside.
    """
    table = pd.read_csv(path, usecols=[0, 1, 2], names=["used", "score", "seconds"], header=0)
    used = table["used"].to_numpy()
    best = np.maximum.accumulate(table["score"].fillna(-np.inf).to_numpy())
    evaluation = np.arange(1, round(used[-1]) + 1)
    row = np.searchsorted(used, evaluation + 1e-4, side="right") - 1
    seconds = table["seconds"].to_numpy()[row]
    # A point with its gradient costs several: before it, nothing is known.
    known = np.where((row < 0) | np.isinf(best[row]), np.nan, best[row])
    return pd.DataFrame({"evaluation": evaluation, "best": known, "seconds": seconds})
