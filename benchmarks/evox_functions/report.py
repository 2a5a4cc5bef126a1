"""Tables of mean ranks with their tests, and plots, from the files of `curves.py`."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from benchmarks.compare.significance import holm
from benchmarks.evox_functions.algorithms import LARGE_BUDGET, SMALL_BUDGET, names
from benchmarks.evox_functions.curves import COLUMNS
from benchmarks.evox_functions.functions import minimum
from benchmarks.plots import draw_bars

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CASE = ["budget", "n", "function"]
QUARTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}


def report(folder: Path) -> None:
    """Print the tables; write medians.csv and the plots to the folder `report`.

    :param folder: of the files.
    """
    curves = read_curves(folder)
    final = final_values(curves)
    report_folder = folder / "report"
    report_folder.mkdir(exist_ok=True)
    write_quartiles(final, report_folder / "medians.csv")
    for budget in final.index.unique("budget"):
        of_budget = final.xs(budget, level="budget")
        for some in compared_together(budget):
            complete = complete_cases(of_budget, some)
            if len(complete):
                ranks = print_ranks(budget, complete, some)
                draw_bars(
                    ranks.mean().sort_values().to_frame("mean rank"),
                    report_folder / f"ranks_{budget}_{len(some)}.svg",
                    xlabel="mean rank (1 is best)",
                )
    for (budget, n), mine in curves.groupby(["budget", "n"]):
        plot(mine, report_folder / f"{budget}_{n}.png", n)


def read_curves(folder: Path) -> pd.DataFrame:
    """All files, in the columns `COLUMNS`."""
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise SystemExit(f"{folder}: expected the files of evox_functions run, found none")
    return pd.concat([pd.read_csv(path, names=COLUMNS) for path in paths])


def final_values(curves: pd.DataFrame) -> pd.Series:
    """The best fitness of every run, by case, algorithm and seed."""
    in_order = curves.sort_values("evaluations", kind="stable")
    return in_order.groupby([*CASE, "algorithm", "seed"])["best"].last()


def write_quartiles(final: pd.Series, path: Path) -> None:
    """Write quartiles over seeds."""
    by_algorithm = final.groupby([*CASE, "algorithm"])
    table = pd.DataFrame({"seeds": by_algorithm.size()})
    for name, share in QUARTILES.items():
        table[name] = by_algorithm.agg(lambda values, share=share: np.quantile(values, share))
    table.to_csv(path, float_format="%.6g")


def compared_together(budget: int) -> list[list[str]]:
    """The algorithms of a table; one without SurrogateEvoGM, as long as it has not run on all."""
    if budget == LARGE_BUDGET:
        return [names(budget)]
    return [names(budget), names(budget)[1:]]


def complete_cases(final: pd.Series, some: list[str]) -> pd.Series:
    """The values of cases that all of some algorithms have run."""
    found = final.groupby(["n", "function", "algorithm"]).size().unstack()
    complete = found.reindex(columns=some).notna().all(axis=1)
    return final[complete.loc[final.index.droplevel(["algorithm", "seed"])].to_numpy()]


def print_ranks(budget: int, final: pd.Series, some: list[str]) -> pd.DataFrame:
    """Print mean ranks of the medians over seeds, with their tests.

    - Friedman's test, with Nemenyi's distance;
    - Wilcoxon's against the first algorithm, with Holm's correction.

    :param budget: evaluations.
    :param final: the best fitness by dimension, function, algorithm and seed.
    :param some: the algorithms.
    :return: the ranks, a row a case.
    """
    from scipy.stats import friedmanchisquare

    # As many seeds of all: a median of fewer varies more.
    seeds = final.groupby(["n", "function", "algorithm"]).size().min()
    fewest = final[final.index.get_level_values("seed") < seeds]
    medians = fewest.groupby(["n", "function", "algorithm"]).median().unstack()[some]
    ranks = medians.rank(axis=1)
    statistic, p_value = friedmanchisquare(*medians.to_numpy().T)
    print(
        f"\n{budget} evaluations, {len(medians)} cases, {seeds} seeds: "
        f"Friedman chi2 {statistic:.1f}, p {p_value:.1e}; "
        f"Nemenyi distance {nemenyi_distance(*ranks.shape):.2f}\n"
    )
    print_rank_table(medians, ranks)
    return ranks


def nemenyi_distance(cases: int, algorithms: int) -> float:
    """The difference of mean ranks that is significant at 5 %."""
    from scipy.stats import studentized_range

    quantile = studentized_range.ppf(0.95, algorithms, np.inf) / np.sqrt(2)
    return quantile * np.sqrt(algorithms * (algorithms + 1) / (6 * cases))


def wilcoxon_tests(medians: pd.DataFrame) -> dict[str, float]:
    """Wilcoxon's test of every other algorithm against the first, with Holm's correction.

    The test compares sizes of differences, and the values of the functions differ by many orders of
    magnitude: it gets logarithms.
    """
    from scipy.stats import wilcoxon

    values = medians.to_numpy()
    above = values - values.min(1, keepdims=True)
    logs = np.log10(above + 1e-12 + 1e-6 * np.abs(values))
    tests = {}
    for index, name in enumerate(medians.columns):
        if index:
            tests[name] = wilcoxon(logs[:, 0], logs[:, index]).pvalue
    return holm(tests)


def print_rank_table(medians: pd.DataFrame, ranks: pd.DataFrame) -> None:
    """One line an algorithm, the best first.

    :param medians: a row a case, a column an algorithm.
    :param ranks: the same for ranks.
    """
    reference = medians.columns[0]
    tests = wilcoxon_tests(medians)
    by_n = ranks.groupby("n").mean()
    titles = " | ".join(f"n={n}" for n in by_n.index)
    print(f"| algorithm | mean rank | {titles} | {reference} better / worse | Wilcoxon, Holm |")
    print("| --- |" + " ---: |" * (len(by_n) + 3))
    for name in ranks.mean().sort_values(kind="stable").index:
        cells = " | ".join(f"{rank:.2f}" for rank in by_n[name])
        duel = p_value = ""
        if name != reference:
            better = (medians[reference] < medians[name]).sum()
            worse = (medians[reference] > medians[name]).sum()
            duel, p_value = f"{better} / {worse}", f"{tests[name]:.1e}"
        print(f"| {name} | {ranks[name].mean():.2f} | {cells} | {duel} | {p_value} |")


def plot(curves: pd.DataFrame, path: Path, n: int) -> None:
    """Medians with quartile bands against evaluations, as distance from the best value known.

    :param curves: of one budget and dimension; a panel a function.
    :param path: of the PNG.
    """
    figure, axes = plt.subplots(4, 5, figsize=(22, 15))
    functions = list(curves.groupby("function", sort=False))
    for axis in axes.flat[len(functions) :]:
        axis.axis("off")
    for axis, (function, mine) in zip(axes.flat, functions, strict=False):
        for colour, name in enumerate(names(SMALL_BUDGET)):
            of_algorithm = mine[mine["algorithm"] == name]
            if len(of_algorithm):
                plot_band(axis, of_algorithm, minimum(function), name, f"C{colour}")
        axis.set(title=f"{function}, n = {n}", yscale="log", xlabel="evaluations")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def plot_band(axis, curves: pd.DataFrame, least: float, name: str, colour: str) -> None:
    """One algorithm on one function."""
    distance = (curves["best"] - least).clip(lower=1e-8)
    quartiles = distance.groupby(curves["evaluations"]).quantile([0.25, 0.5, 0.75]).unstack()
    width = 2.5 if "EvoGM" in name else 1
    axis.plot(quartiles.index, quartiles[0.5], color=colour, label=name, linewidth=width)
    axis.fill_between(quartiles.index, quartiles[0.25], quartiles[0.75], color=colour, alpha=0.12)
