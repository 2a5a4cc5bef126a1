"""The runs that `compare.py` wrote, and the statistics by which they are compared."""

import csv
import json
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TRIALS = 100  # seeds from here on were for trying things out


@dataclass(frozen=True)
class Run:
    """One case: its result, and after every evaluation spent the best dev score so far and the seconds since the start."""

    result: dict
    best: np.ndarray
    seconds: np.ndarray


def read_runs(folder: Path) -> dict[str, list[Run]]:
    """The runs of every method, in the order of their seeds."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for path in folder.glob("*_seed*.json"):
        result = json.loads(path.read_text())
        if result["seed"] >= TRIALS:
            continue
        with path.with_suffix(".csv").open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        spent, scores, seconds = np.array([[float(cell) for cell in row[:3]] for row in rows]).T
        whole = np.arange(
            1, round(spent[-1]) + 1
        )  # of merges that were given up a part of an evaluation was spent
        row = np.searchsorted(spent, whole + 1e-4, side="right") - 1
        best = np.maximum.accumulate(np.nan_to_num(scores, nan=-np.inf, neginf=-np.inf))
        runs[result["method"]].append(Run(result, best[row], seconds[row]))
    return {
        name: sorted(mine, key=lambda run: run.result["seed"])
        for name, mine in sorted(runs.items())
    }


def value(run: Run, split: str) -> float:
    """The best dev score found, or the answer's test score."""
    return float(run.best[-1]) if split == "dev" else run.result[split]


def final(runs: list[Run], split: str) -> np.ndarray:
    return np.array([value(run, split) for run in runs])


def of_group(
    runs: dict[str, list[Run]], groups: dict[str, str], group: str
) -> dict[str, list[Run]]:
    """The runs of a group's methods, in the order of `groups`."""
    return {name: runs[name] for name in groups if groups[name] == group and name in runs}


def evaluations(runs: list[Run]) -> int:
    """What a run spends, in full evaluations."""
    return max((len(run.best) for run in runs), default=0)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's correction of several p values."""
    corrected, largest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.get)):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - place)))
        corrected[name] = largest
    return corrected


def mean_ranks(runs: dict[str, list[Run]], split: str) -> dict[str, float]:
    """Mean of the rank over the seeds that all methods have; 1 is the best, equals share."""
    from scipy.stats import rankdata

    seeds = set.intersection(*({run.result["seed"] for run in mine} for mine in runs.values()))
    if not seeds:
        return {}
    scores = {
        name: [value(run, split) for run in mine if run.result["seed"] in seeds]
        for name, mine in runs.items()
    }
    ranks = np.array(
        [rankdata([-score for score in row]) for row in zip(*scores.values(), strict=True)]
    )
    return dict(zip(scores, ranks.mean(0), strict=True))


def on_shared_seeds(ours: list[Run], theirs: list[Run]) -> tuple[list[Run], list[Run]]:
    """The runs of the seeds that both have."""
    seeds = {run.result["seed"] for run in ours} & {run.result["seed"] for run in theirs}
    return tuple([run for run in runs if run.result["seed"] in seeds] for runs in (ours, theirs))


def corrected_tests(
    runs: dict[str, list[Run]], reference: str, split: str, *, paired: bool = False
) -> dict[str, float]:
    """Welch's test of every method against the reference, or the paired t test on the seeds that both have, which is the
    sharper one where a seed draws its own questions; with Holm's correction."""
    from scipy.stats import ttest_ind, ttest_rel

    p_values = {}
    for name, theirs in runs.items():
        ours, theirs = (
            on_shared_seeds(runs[reference], theirs) if paired else (runs[reference], theirs)
        )
        if name == reference or min(len(ours), len(theirs)) < 2:
            continue
        a, b = final(ours, split), final(theirs, split)
        with warnings.catch_warnings():  # where nearly nothing varies
            warnings.simplefilter("ignore", RuntimeWarning)
            p = float((ttest_rel(a, b) if paired else ttest_ind(a, b, equal_var=False)).pvalue)
        p_values[name] = (
            float(a.mean() == b.mean()) if np.isnan(p) else p
        )  # NaN: nothing varies at all
    return holm(p_values)
