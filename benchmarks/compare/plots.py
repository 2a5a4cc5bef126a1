"""Plots of the runs that `benchmarks.compare` wrote."""

from pathlib import Path

import pandas as pd

from benchmarks.compare.runs import Runs
from benchmarks.plots import draw_bars, draw_curves, draw_panels


def by_evaluation(runs: Runs, method: str, column: str) -> pd.DataFrame:
    """A column of the curves: a row an evaluation that all seeds made, a column a seed."""
    return runs.curves[column].loc[method].unstack("seed").dropna()


def quartiles(table: pd.DataFrame) -> pd.DataFrame:
    """Median and quartiles over the columns."""
    bands = table.quantile([0.25, 0.5, 0.75], axis=1).T
    return bands.set_axis(["lower", "middle", "upper"], axis=1)


def plot_curves(runs: Runs, path: Path) -> None:
    """The best dev score so far against evaluations: median and quartiles over seeds."""
    curves = {name: quartiles(by_evaluation(runs, name, "best")) for name in runs.methods}
    draw_curves(curves, path, xlabel="evaluations", ylabel="best dev score")


def plot_seconds(runs: Runs, path: Path) -> None:
    """The same against the median of seconds."""
    curves = {}
    for name in runs.methods:
        seconds = by_evaluation(runs, name, "seconds").median(axis=1)
        curves[name] = quartiles(by_evaluation(runs, name, "best")).set_axis(seconds)
    draw_curves(curves, path, xlabel="seconds", ylabel="best dev score", xscale="log")


def plot_final(runs: Runs, path: Path) -> None:
    """Final dev and test scores, and their standard deviations over seeds."""
    by_method = runs.results[["dev", "test"]].groupby("method", sort=False)
    draw_bars(by_method.mean(), path, xlabel="score", errors=by_method.std().fillna(0))


def plot_counts(table: pd.DataFrame, path: Path) -> None:
    """Test scores against the number of experts, as the paper's figure 5.

    :param table: a row a method, a column a number of experts.
    """
    draw_panels({"experts": table.T}, path, ylabel="test score")
