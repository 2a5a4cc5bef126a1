"""The tables of the page: scores, coefficients, and what the run cost."""

import math
from typing import NamedTuple

from evox_evogm.command.html_report.coefficient_charts import at_edge
from evox_evogm.command.html_report.formats import duration, short, signed, with_error
from evox_evogm.command.html_report.run_data import Row, RunData, Score
from evox_evogm.command.html_report.score_charts import loss_without
from evox_evogm.command.number_format import is_shown
from evox_evogm.command.scores import label
from evox_evogm.command.task_settings import SPLITS

MOST_ERRORS = 800  # standard errors of single tasks in a table of all models


class Cell(NamedTuple):
    """A score in a table."""

    value: str
    error: str
    """Its standard error; empty where it is unknown."""
    is_best: bool
    """Whether no other of its line is higher, as shown."""


class Table(NamedTuple):
    """Scores with a header."""

    caption: str
    columns: list[str]
    lines: list[tuple[str, list[Cell]]]


def cell(score: Score, best: float = math.nan) -> Cell:
    """A score in a table.

    :param best: the highest of its line.
    """
    if math.isnan(score.value):
        return Cell("none", "", False)
    error = short(score.error) if is_shown(score.error) else ""
    return Cell(short(score.value), error, round(score.value, 3) >= round(best, 3))


def main_tables(run: RunData) -> list[Table]:
    """A table a split: a line a task, a column for base, best expert, average, RegMean, merge."""
    rows = compared_rows(run)
    captions = {
        "test": "Test: examples that the search did not see",
        "dev": "Dev: examples that the search maximised",
    }
    tables = []
    for split in reversed(SPLITS):
        lines = []
        for task in ("", *run.tasks):
            scores = [row.scores[split][task] for row in rows]
            known = [score.value for score in scores if not math.isnan(score.value)]
            best = max(known, default=math.nan)
            cells = [cell(score, best) for score in scores]
            lines.append((task or "mean over tasks", cells))
        names = [_column(row) for row in rows]
        tables.append(Table(captions[split], names, lines))
    return tables


def compared_rows(run: RunData) -> list[Row]:
    """Base, best expert, and every row that is of no expert."""
    rows = [row for row in run.rows if row.kind == "base"]
    if run.best_expert is not None:
        rows.append(run.best_expert)
    return rows + [row for row in run.rows if row.kind not in ("base", "expert")]


def _column(row: Row) -> str:
    return {"expert": "best expert", "merge": "merge"}.get(row.kind, row.name)


def every_row_table(run: RunData) -> list[Table]:
    """A table a split: a line for every model, a column for every task and their mean.

    In a large table only the mean has its standard error.
    """
    has_errors = len(run.rows) * len(run.tasks) <= MOST_ERRORS
    tables = []
    for split in reversed(SPLITS):
        lines = []
        for row in run.rows:
            cells = [cell(row.scores[split][""])]
            for task in run.tasks:
                score = row.scores[split][task]
                cells.append(cell(score if has_errors else Score(score.value, math.nan)))
            lines.append((row.name, cells))
        tables.append(Table(f"{split.capitalize()}, every model", ["mean", *run.tasks], lines))
    return tables


class ExpertLine(NamedTuple):
    """An expert in the table of coefficients."""

    number: int
    name: str
    coefficient: str
    """With several groups their mean."""
    edges: str
    """Whether, or how often, it stands at the edge of the box."""
    loss: str
    """What the merge loses on dev without it; empty where that was not evaluated."""


def coefficient_table(run: RunData) -> list[ExpertLine]:
    """A line for each expert."""
    edges = at_edge(run)
    data = run.data.get("contributions") or {}
    lines = []
    for row, name in enumerate(run.experts):
        count = int(edges[row].sum())
        edge = ""
        if count:
            total = int(run.used[row].sum())
            edge = "at the edge" if run.n_groups == 1 else f"{count} of {total} at the edge"
        loss = ""
        if "without" in data:
            score = loss_without(data, name)
            loss = "failed" if math.isnan(score.value) else with_error(score.value, score.error)
        value = signed(run.result["coefficients"][name])
        lines.append(ExpertLine(row + 1, label("expert", name), value, edge, loss))
    return lines


def worth_of(run: RunData) -> list[tuple[str, str]]:
    """What the run cost, and how long each part took."""
    result = run.result
    lines = [("evaluations", f"{result['evaluations']}")]
    if result["full_evaluations"] != result["evaluations"]:
        lines.append(("as much as full evaluations", f"{result['full_evaluations']:.1f}"))
    if result.get("minibatches", 1) > 1:
        lines.append(("minibatches of the dev examples", f"{result['minibatches']}"))
    lines.append(("time of the evaluations", duration(result["seconds"])))
    for part, words in (
        ("contributions", "time of leaving each expert out"),
        ("examples", "time of the answers shown"),
    ):
        seconds = (run.data.get(part) or {}).get("seconds")
        if seconds is not None:
            lines.append((words, duration(float(seconds))))
    return lines


def has_all_errors(run: RunData) -> bool:
    """Whether every score has a standard error."""
    for row in run.rows:
        for split in SPLITS:
            for score in row.scores[split].values():
                if math.isfinite(score.value) and math.isnan(score.error):
                    return False
    return True
