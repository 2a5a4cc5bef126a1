"""Tables of the report, printed as Markdown; layouts after the tables of the EvoGM paper."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.compare.runs import TEST_OF_BEST, Runs
from benchmarks.compare.significance import (
    corrected_tests,
    holm,
    improvement_tests,
    mean_ranks,
    on_shared_seeds,
    t_test,
)

AT = (1, 40, 60, 80, 160, 320, 640)  # evaluations of which the best dev score is shown
SPLITS = ("dev", "test")


def print_table(table: pd.DataFrame) -> None:
    """Print a table; its index, with the name of the first column, stands on the left."""
    print(f"\n| {table.index.name} | " + " | ".join(table.columns) + " |")
    print("| --- |" + " ---: |" * len(table.columns))
    for row in table.itertuples(name=None):
        print("| " + " | ".join(map(show_cell, row)) + " |")


def show_cell(value) -> str:
    """Scores have three digits; what is missing is empty."""
    if value is None or value is pd.NA or value != value:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def with_deviation(values: pd.Series) -> str:
    """Mean ± standard deviation over seeds."""
    deviation = values.std() if len(values) > 1 else 0
    return f"{values.mean():.3f} ± {deviation:.3f}"


def mean_and_deviation(runs: Runs, split: str) -> pd.Series:
    """`with_deviation` of every method."""
    return runs.results[split].groupby("method", sort=False).agg(with_deviation)


def show_p_values(p_values: dict[str, float]) -> pd.Series:
    return pd.Series({name: f"{p_value:.1g}" for name, p_value in p_values.items()}, dtype=object)


def print_summary(runs: Runs, reference: str, *, paired: bool) -> None:
    """Best dev score by evaluations, test score, ranks and tests; then what it took.

    Only the methods with the most seeds are ranked and tested: all would be compared on the seeds
    of the fewest.
    """
    seeds = runs.seeds()
    budget = runs.evaluations().max()
    ranked = runs.of(seeds.index[seeds == seeds.max()])
    ranks = {split: mean_ranks(ranked, split) for split in SPLITS}
    table = pd.DataFrame({"seeds": seeds})
    for evaluation in AT:
        if evaluation <= budget:
            table[f"dev at {evaluation}"] = runs.best_at(evaluation)
    table["test"] = mean_and_deviation(runs, "test")
    for split in SPLITS:
        table[f"rank {split}"] = ranks[split].map("{:.1f}".format)
    if reference in ranked.methods:
        for split in SPLITS:
            p_values = corrected_tests(ranked, reference, split, paired=paired)
            table[f"{test_name(paired)} {split}"] = show_p_values(p_values)
    order = pd.DataFrame(
        {
            "rank": ranks["dev"].reindex(table.index).fillna(np.inf),
            "loss": -runs.results["dev"].groupby("method", sort=False).mean(),
        }
    )
    print_table(table.loc[order.sort_values(["rank", "loss"]).index].rename_axis("method"))
    print_costs(runs)


def test_name(paired: bool) -> str:
    return "paired p" if paired else "p"


def print_costs(runs: Runs) -> None:
    """Evaluations, seconds, dtype and commits of every method."""
    by_method = runs.results.groupby("method", sort=False)
    table = pd.DataFrame(index=by_method.size().index)
    columns = {
        "evaluations": "evaluations",
        "seconds": "seconds",
        "of these in evaluation": "seconds of evaluation",
    }
    for title, column in columns.items():
        table[title] = by_method[column].mean().map("{:.1f}".format)
    for title, column in {"dtype": "dtype", "commits": "commit"}.items():
        table[title] = by_method[column].agg(lambda values: ", ".join(sorted(set(values))))
    print_table(table)


def print_changes(runs: Runs, names: list[str], reference: str, what: str, *, paired: bool) -> None:
    """Methods beside the one that they change, each on the seeds that both have.

    Tests are Welch's or paired ones. They are left out where one has made more evaluations than the
    other.

    :param runs: of the reference and the others.
    :param names: of the others.
    :param reference: what they change.
    :param what: the title of the first column.
    """
    evaluations = runs.evaluations()
    rows: dict[str, dict] = {}
    for name in names:
        row = {"seeds": 0, "evaluations": evaluations[name]}
        for split in SPLITS:
            ours, theirs = on_shared_seeds(runs.scores(reference, split), runs.scores(name, split))
            row["seeds"] = len(theirs)
            row[split] = f"{theirs.mean():.3f}"
            row[f"{reference}, {split}"] = f"{ours.mean():.3f}"
        rows[name] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    for split in SPLITS:
        p_values = {}
        for name in names:
            ours, theirs = on_shared_seeds(runs.scores(reference, split), runs.scores(name, split))
            p_value = t_test(ours, theirs, paired=paired)
            if evaluations[name] == evaluations[reference] and p_value is not None:
                p_values[name] = p_value
        table[f"{test_name(paired)} {split}"] = show_p_values(holm(p_values))
    print_table(table.rename_axis(what))


def print_choices(runs: Runs) -> None:
    """Test scores of the final choice beside those of the best on dev.

    Methods that always choose the best on dev are left out.
    """
    rows, p_values = {}, {}
    for name in runs.methods:
        pairs = runs.results.loc[name, ["test", TEST_OF_BEST]].dropna().astype(float)
        ours, best = pairs["test"], pairs[TEST_OF_BEST]
        if len(pairs) > 1 and (ours != best).any():
            rows[name] = {
                "seeds": len(pairs),
                "recommended": with_deviation(ours),
                "best on dev": with_deviation(best),
            }
            p_values[name] = t_test(ours, best, paired=True)
    if rows:
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("test, final choice")
        table["paired p"] = show_p_values(holm(p_values))
        print_table(table)


def print_control(runs: Runs, known: dict[str, float]) -> None:
    """Say of every search whether it gains on test where there is nothing to learn, at 5 %.

    :param runs: of the searches.
    :param known: test scores of merges that need no search; a gain is one over the best of them.
    """
    best = max(known, key=known.get)
    gains = {name: runs.scores(name, "test") - known[best] for name in runs.methods}
    p_values = improvement_tests(gains)
    for name, gain in gains.items():
        if name not in p_values:
            print(f"\n{name} ran once, which says nothing: {with_deviation(gain)} over {best}.")
            continue
        verdict = "IMPROVES" if p_values[name] < 0.05 else "does not improve"
        print(
            f"\n{name} {verdict} over {best} on test: {with_deviation(gain)} "
            f"over {len(gain)} seeds, p {p_values[name]:.2g}."
        )


def print_budgets(kind: str, budgets: dict[int, Runs]) -> None:
    """Searches with fewer evaluations beside those with more.

    :param kind: what the settings have in common.
    :param budgets: the runs by the number of evaluations.
    """
    rows = []
    for budget in sorted(budgets):
        runs = budgets[budget]
        table = pd.DataFrame({"evaluations": budget, "seeds": runs.seeds()})
        for split in SPLITS:
            table[split] = mean_and_deviation(runs, split)
        rows.append(table)
    print_table(pd.concat(rows).rename_axis(f"budgets ({kind})"))


def print_by_task(runs: Runs, static: list[dict]) -> None:
    """Test scores by task and their mean, of static merges first.

    :param runs: of searches.
    :param static: results of static merges on the same questions.
    """
    rows = {}
    for result in static:
        rows[result["method"]] = {**result["test by task"], "mean": result["test"]}
    scores = runs.tasks.dropna(axis=1, how="all").assign(mean=runs.results["test"])
    means = scores.groupby("method", sort=False).mean()
    table = pd.concat([pd.DataFrame.from_dict(rows, orient="index"), means])
    print_table(table[list(means.columns)].rename_axis("method, test"))


def count_table(folders: dict[int, Runs]) -> pd.DataFrame:
    """Test scores by method and number of experts, as the paper's table 13.

    :param folders: the runs by the number of experts. The tasks that all have count.
    :return: a row a method that has at least three numbers; its index is named after the tasks.
    """
    scores = pd.concat({n: folders[n].tasks for n in sorted(folders)}, names=["n"])
    scores = scores.dropna(axis=1)
    cells = scores.stack().groupby(["method", "n"]).mean().unstack("n")
    several = cells[cells.notna().sum(axis=1) > 2]
    return several.rename_axis(f"experts, test on {len(scores.columns)} tasks")


def read_static(folder: Path) -> list[dict]:
    """The results of `benchmarks.static_merges`, the best on dev first."""
    results = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(results, key=lambda result: -result["dev"])


def print_static(folder: Path) -> None:
    """Merges chosen on dev from a grid of so many evaluations."""
    rows = {}
    for result in read_static(folder):
        rows[result["method"]] = {
            "chosen": result["setting"],
            "evaluations": result["evaluations"],
            "dev": result["dev"],
            "test": result["test"],
            "seconds": f"{result['seconds']:.0f}",
        }
    print_table(pd.DataFrame.from_dict(rows, orient="index").rename_axis("static merge"))
