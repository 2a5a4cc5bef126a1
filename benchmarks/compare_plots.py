"""Plots of the runs that `compare.py` wrote."""

from pathlib import Path

import matplotlib
import numpy as np
from compare_runs import Run, final

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_curves(runs: dict[str, list[Run]], path: Path, title: str) -> None:
    """Median of the best dev score so far with quartile bands, against evaluations and against seconds."""
    figure, (by_evaluation, by_second) = plt.subplots(1, 2, figsize=(13, 5), sharey=True)
    for index, (name, mine) in enumerate(runs.items()):
        length = min(len(run.best) for run in mine)
        best = np.stack([run.best[:length] for run in mine])
        lower, median, upper = np.quantile(best, [0.25, 0.5, 0.75], axis=0)
        style = {"color": plt.cm.tab20(index % 20)}
        by_evaluation.plot(np.arange(1, length + 1), median, label=name, **style)
        by_evaluation.fill_between(np.arange(1, length + 1), lower, upper, alpha=0.12, **style)
        seconds = np.median([run.seconds[:length] for run in mine], axis=0)
        by_second.plot(seconds, median, **style)
        by_second.fill_between(seconds, lower, upper, alpha=0.12, **style)
    by_evaluation.set(xlabel="evaluations", ylabel="best dev score", title=title)
    by_second.set(xlabel="seconds", xscale="log")
    by_evaluation.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def plot_bars(runs: dict[str, list[Run]], path: Path) -> None:
    """Final dev and test scores with their standard deviations."""
    figure, axis = plt.subplots(figsize=(max(6, 0.6 * len(runs)), 4))
    for offset, split in ((-0.2, "dev"), (0.2, "test")):
        values = [final(mine, split) for mine in runs.values()]
        axis.bar(
            np.arange(len(runs)) + offset,
            [v.mean() for v in values],
            0.4,
            yerr=[v.std(ddof=1) if len(v) > 1 else 0 for v in values],
            label=split,
        )
    axis.set_xticks(np.arange(len(runs)), runs, rotation=45, ha="right", fontsize=8)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def plot_counts(cells: dict[str, dict[int, float]], path: Path) -> None:
    """Test scores against the number of experts, as the paper's figure 5.

    :param cells: per method, by the number of experts.
    """
    figure, axis = plt.subplots(figsize=(6, 4))
    for name, values in cells.items():
        axis.plot(list(values), list(values.values()), marker="o", label=name)
    axis.set(xlabel="experts", ylabel="test score")
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
