"""Print the paper's tables with our figures beside the paper's.

python -m benchmarks.paper_table runs/mmlu runs/gsm8k runs/all_eight
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.paper_table.runs import Run, mean, read_run

FIGURES = json.loads(Path(__file__).with_name("figures.json").read_text(encoding="utf-8"))
TABLES = [number for number in FIGURES if number != "seeds"]


def table_of(run: Run) -> str:
    """The number of the table that a run belongs to, by its tasks and its base.

    :raises ValueError: if its tasks are those of no table.
    """
    for number in ("2", "3", "8"):
        if run.tasks == set(FIGURES[number]["columns"]):
            return number
    if len(run.tasks) == 1 and run.tasks <= set(FIGURES["1"]["columns"]):
        return "6" if "qwen3" in run.base.lower() else "1"
    raise ValueError(
        f"runs: expected tasks of a table of the paper, found {', '.join(sorted(run.tasks))} in "
        f"{run.folder}; name the table by --table"
    )


def make_table(number: str, runs: Sequence[Run]) -> list[str]:
    """A table as lines of Markdown: in each cell the paper's figure, then ours.

    Ours is the mean over runs that have the task, and the mean over tasks that have one.

    :param number: of the table.
    """
    figures = FIGURES[number]
    columns, paper_means = figures["columns"], figures.get("means", {})
    ours: dict[str, list[float | None]] = {}
    for run in runs:
        for name in run.rows:
            if name not in ours:
                ours[name] = [_mean_of(runs, name, task) for task in columns]
    names = list({**figures.get("rows", {}), **paper_means, **ours})
    lines = [
        f"Table {number}: {figures['what']}. Test scores, paper / here.",
        "",
        f"| | {' | '.join(columns)} | mean |",
        f"| --- |{' ---: |' * (len(columns) + 1)}",
    ]
    for name in names:
        theirs = figures.get("rows", {}).get(name, [None] * len(columns))
        own = ours.get(name, [None] * len(columns))
        cells = [_cell(one, other) for one, other in zip(theirs, own, strict=True)]
        known = [value for value in theirs if value is not None]
        of_paper = paper_means.get(name, mean(known) if known else None)
        found = [value for value in own if value is not None]
        cells.append(_cell(of_paper, mean(found) if found else None))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _mean_of(runs: Sequence[Run], name: str, task: str) -> float | None:
    """The mean of a row over the runs that have it and the task."""
    found = [run.rows[name][task] for run in runs if name in run.rows and task in run.rows[name]]
    return mean(found) if found else None


def _cell(of_paper: float | None, ours: float | None) -> str:
    if of_paper is None and ours is None:
        return ""
    return f"{_shown(of_paper)} / {_shown(ours)}"


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def over_seeds(runs: Sequence[Run]) -> list[str]:
    """Means of all eight tasks over seeds, beside the paper's, where two seeds have all tasks."""
    columns = FIGURES["1"]["columns"]
    lines = []
    for algorithm in {run.algorithm: None for run in runs}:
        by_seed: dict[int, dict[str, float]] = {}
        for run in runs:
            if run.algorithm == algorithm:
                by_seed.setdefault(run.seed, {}).update(run.rows[algorithm])
        means = [mean(list(found.values())) for found in by_seed.values() if _has(found, columns)]
        if len(means) < 2:
            continue
        ours = f"{mean(means):.4f} ± {statistics.stdev(means):.4f} over {len(means)} seeds"
        known = FIGURES["seeds"]["rows"].get(algorithm)
        paper = "" if known is None else f"; paper {known[0]:.4f} ± {known[1]:.4f} over 4"
        lines.append(f"{algorithm}, mean of eight tasks: {ours}{paper}")
    return lines


def _has(found: Mapping[str, float], columns: Sequence[str]) -> bool:
    return set(found) == set(columns)


def report(runs: Sequence[Run], table: str | None = None) -> list[str]:
    """All tables that runs belong to, and what the runs took.

    :param table: the number of the table for all runs; None to go by their tasks.
    """
    by_table: dict[str, dict[tuple[str, ...], list[Run]]] = {}
    for run in runs:
        alike = by_table.setdefault(table or table_of(run), {})
        alike.setdefault(run.parts, []).append(run)
    lines = []
    for number in sorted(by_table):
        for merged in by_table[number].values():  # those of one base and the same experts
            lines += [*make_table(number, merged), ""]
            if len(by_table[number]) > 1:
                folders = ", ".join(str(run.folder) for run in merged)
                lines += [f"Base {merged[0].base}, runs {folders}.", ""]
            if number == "1":
                lines += over_seeds(merged)
    lines.append("The paper's searches make 160 evaluations a task with Qwen2.5-1.5B.")
    for run in runs:
        took = f"{run.evaluations} evaluations in {run.seconds / 60:.1f} min"
        lines.append(f"- {run.folder}: {run.algorithm}, seed {run.seed}, {took}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the run folders, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--table", choices=TABLES, help="by default the one that has the tasks")
    args = parser.parse_args(arguments)
    runs = []
    for folder in args.runs:
        try:
            run = read_run(folder)
            if args.table is None:
                table_of(run)
        except ValueError as error:
            print(f"Left out: {error}")
            continue
        runs.append(run)
    if not runs:
        raise SystemExit("runs: expected a finished run of a table of the paper, found none")
    print("\n".join(report(runs, args.table)))


if __name__ == "__main__":
    main()
