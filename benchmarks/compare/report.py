"""The report on the files of `python -m benchmarks.compare run`.

Tables go to standard output as Markdown, plots as SVG to the folder `report` beside the files.

They follow these tables of the EvoGM paper:

| of one setting | of the paper |
| --- | --- |
| scores by evaluations, with ranks and tests | 3, 4 |
| time | 7 |
| scores by task, with the static merges | 1 |
| what a change costs | 5, 11 |
| settings | 12 |
| number of experts, over all settings | 13 |
"""

import re
from collections import defaultdict
from pathlib import Path

from benchmarks.compare import plots, tables
from benchmarks.compare.runs import Runs, read_runs

REFERENCE = "SurrogateEvoGM"
ON_SCORES = "SurrogateEvoGM scores"  # the one without outcomes, as all others
TRAINED = "LoRA on dev"  # it gets the right answers
CHANGED = {  # by group of methods: what they are compared with, and what they are
    "parts": (REFERENCE, "part"),
    "design": (REFERENCE, "design"),
    "scores": (ON_SCORES, "on scores alone"),
    "gradients": (REFERENCE, "space and gradients"),
    "granularity": (REFERENCE, "space"),
    "ablations": ("EvoGM", "change"),
    "sweeps": ("EvoGM", "setting"),
}
# Merges without a search that a control needs; the average of random adapters is another one than
# that of the experts.
STATIC_OF_CONTROL = {"random": ["base"], "shuffled": ["base", "Model Soup"]}


def print_report(folder: Path, groups: dict[str, str]) -> None:
    """Print the tables of a suite, and write its plots.

    :param folder: of the suite.
    :param groups: of the methods: `"search"` or one of `CHANGED`.
    """
    settings = read_settings(folder)
    plot_folder = folder / "report"
    plot_folder.mkdir(exist_ok=True)
    for setting, runs in settings.items():
        print(f"\n## {setting}")
        print_setting(setting, runs, folder, groups)
        plot_setting(setting, runs, plot_folder, groups)
    for path in sorted(folder.glob("n*_static*")):
        print(f"\n## {path.name}")
        tables.print_static(path)
    print_all_budgets(settings, groups)
    print_all_counts(settings, plot_folder)


def read_settings(folder: Path) -> dict[str, Runs]:
    """The runs of every setting of a suite, by the name of its folder."""
    settings = {}
    for path in sorted(folder.glob("n*_*")):
        runs = read_runs(path)
        if runs is not None and "_static" not in path.name:
            settings[path.name] = runs
    if not settings:
        raise SystemExit(f"{folder}: expected the files of benchmarks.compare run, found none")
    return settings


def print_setting(setting: str, runs: Runs, folder: Path, groups: dict[str, str]) -> None:
    """All tables of one setting."""
    n, _, *suffixes = setting.split("_")
    resampled = "resampled" in suffixes
    control = next((name for name in STATIC_OF_CONTROL if name in suffixes), "")
    questions = [suffix for suffix in suffixes if re.fullmatch(r"dev\d+", suffix)]
    static_folder = folder / "_".join([n, "static", *questions])
    static = [] if resampled else tables.read_static(static_folder)
    searches = runs.of_group(groups, "search")
    if searches.methods:
        tables.print_summary(searches, REFERENCE, paired=resampled)
        if ON_SCORES in runs.methods:
            others = [name for name in searches.methods if name not in (REFERENCE, TRAINED)]
            print("\nWith the same information for all, scores alone:")
            tables.print_summary(runs.of([ON_SCORES, *others]), ON_SCORES, paired=resampled)
        tables.print_by_task(searches, [] if control else static)
    if control and resampled:
        print("\nWhether a control improves is not known: the base was scored on other questions.")
    elif control:
        print_verdict(runs, static, STATIC_OF_CONTROL[control])
    tables.print_choices(runs)
    for group, (reference, what) in CHANGED.items():
        names = runs.of_group(groups, group).methods
        if names and reference in runs.methods:
            tables.print_changes(runs, names, reference, what, paired=resampled)
        elif names:
            print(f"\n{', '.join(names)}: not compared, as {reference} has not run here.")


def print_verdict(searches: Runs, static: list[dict], needed: list[str]) -> None:
    """Say whether searches improve on a control.

    :param searches: of the control.
    :param static: results of merges without a search.
    :param needed: those among them that searches are compared with.
    """
    known = {}
    for result in static:
        if result["method"] in needed:
            known[result["method"]] = result["test"]
    if len(known) == len(needed):
        tables.print_control(searches, known)
    else:
        names = " ".join(map(repr, needed))
        print(
            "\nWhether a control improves is not known: "
            f"run python -m benchmarks.static_merges --methods {names}."
        )


def plot_setting(setting: str, runs: Runs, folder: Path, groups: dict[str, str]) -> None:
    """Plots of every group of methods, with the method that they change."""
    for group in ("search", *CHANGED):
        names = runs.of_group(groups, group).methods
        if not names:
            continue
        if group in CHANGED:
            reference = CHANGED[group][0]
            names = [reference, *(name for name in names if name != reference)]
        mine = runs.of(names)
        plots.plot_curves(mine, folder / f"{setting}_{group}.svg")
        plots.plot_seconds(mine, folder / f"{setting}_{group}_seconds.svg")
        plots.plot_final(mine, folder / f"{setting}_{group}_final.svg")


def print_all_budgets(settings: dict[str, Runs], groups: dict[str, str]) -> None:
    """A table of searches for settings that differ in nothing but the budget."""
    kinds: dict[str, dict[int, Runs]] = defaultdict(dict)
    for setting, runs in settings.items():
        n, budget, *suffixes = setting.split("_")
        searches = runs.of_group(groups, "search")
        if searches.methods:
            kinds["_".join([n, *suffixes])][int(budget)] = searches
    for kind, budgets in kinds.items():
        if len(budgets) > 1:
            tables.print_budgets(kind, budgets)


def print_all_counts(settings: dict[str, Runs], plot_folder: Path) -> None:
    """A table and a plot for settings that differ in nothing but the number of experts."""
    kinds: dict[str, dict[int, Runs]] = defaultdict(dict)
    for setting, runs in settings.items():
        n, _, kind = setting.partition("_")
        kinds[kind][int(n.removeprefix("n"))] = runs
    for kind in sorted(kinds):
        table = tables.count_table(kinds[kind])
        if len(table):
            table.index.name += f" ({kind})"
            tables.print_table(table.rename(columns=str))
            plots.plot_counts(table, plot_folder / f"expert_counts_{kind}.svg")


def write_svg(folder: Path, methods: list[str], path: Path) -> None:
    """Write the plot of one setting: best dev score against evaluations.

    :param folder: of the setting.
    :param methods: to show, the first one emphasised.
    :param path: of the SVG.
    """
    runs = read_runs(folder)
    if runs is None or not runs.of(methods).methods:
        raise SystemExit(f"{folder}: expected runs of {', '.join(methods)}, found none")
    plots.plot_curves(runs.of(methods), path)
