"""The table of scores at the end of a run: its cells, and how a terminal shows them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from evox_evogm.command.best_expert import best_places, listed
from evox_evogm.command.constraint_settings import MULTI_OBJECTIVE
from evox_evogm.command.number_format import short, with_error
from evox_evogm.command.scores import label
from evox_evogm.command.task_settings import SPLITS
from evox_evogm.command.uncertainty import standard_error_of_mean
from evox_evogm.monitoring.escaping import sanitize

UNLIMITED = 10_000  # columns of a console that is no terminal


def table_cells(
    rows: Sequence[dict],
    tasks: Sequence[str],
    *,
    task_errors: bool = True,
    dev_errors: bool = True,
) -> list[list[str]]:
    """A header and a line a model: its name, and `dev / test` for every task and for the mean.

    A score has its standard error where that is known.

    :param rows: as in `result["scores"]`: name, kind, dev and test scores by task, and in newer
        results their errors.
    :param tasks: the names of those that get a column. The mean is over all.
    :param task_errors: whether the scores of single tasks have their errors too.
    :param dev_errors: whether dev scores have theirs.
    """
    cells = [["model", *tasks, "mean"]]
    for row in rows:
        by_split = {split: errors_of(row, split) for split in SPLITS}
        if not dev_errors:
            by_split["dev"] = {}
        line = [label(row["kind"], row["name"])]
        for task in tasks:
            scores = []
            for split in SPLITS:
                error = by_split[split].get(task, math.nan) if task_errors else math.nan
                scores.append(with_error(row[split][task], error))
            line.append(" / ".join(scores))
        means = []
        for split in SPLITS:
            means.append(with_error(_mean(row[split]), standard_error_of_mean(by_split[split])))
        line.append(" / ".join(means))
        cells.append(line)
    return cells


def errors_of(row: dict, split: str) -> dict[str, float]:
    """The standard errors of a row's scores, by task; empty in an older result.

    :param row: of `result["scores"]`.
    """
    errors = {}
    for name, error in row.get("errors", {}).get(split, {}).items():
        errors[name] = math.nan if error is None else float(error)
    return errors


def has_errors(rows: Sequence[dict]) -> bool:
    """Whether a table of these rows shows a standard error.

    :param rows: as in `result["scores"]`.
    """
    for row in rows:
        errors = errors_of(row, "test")
        if any(math.isfinite(error) for error in errors.values()):
            return True
    return False


def _mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def remarks_on_merge(result: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know about its last row, the merge: a line each.

    :param result: what `result.json` holds; or its `scores` alone.
    """
    rows, confirm = result["scores"], result.get("confirm")
    merge = rows[-1]
    if merge["kind"] != "merge":
        return []
    chosen = "the merge with the best observed dev score"
    if merge["name"] in MULTI_OBJECTIVE:
        chosen = "the merge of the front with the best mean dev score"
    elif merge["name"] != "EvoGM":
        chosen = "the recommended merge, which need not have the best observed dev score"
        if result.get("minibatches", 1) > 1:
            chosen = "the recommended merge, an average of the points of the search"
    scored = confirm["candidates"] if confirm else []
    if len(scored) > 1 or (scored and not scored[0].get("recommended", True)):
        chosen = "the merge that scored best over the dev examples and further ones"
    remarks = [f"{merge['name']} is {chosen}."]
    better = []
    for split in SPLITS:
        score, experts = _best_experts(rows, split)
        if round(score, 3) > round(_mean(merge[split]), 3):
            level = " each" if len(experts) > 1 else ""
            better.append(f"on {split} ({listed(experts)}, {short(score)}{level})")
    if better:
        remarks.append(f"It is below the best single expert {' and '.join(better)}.")
    return remarks


def _best_experts(rows: Sequence[dict], split: str) -> tuple[float, list[str]]:
    """The best mean score of an expert, and which have it; -inf where none has scores."""
    experts = [row for row in rows if row["kind"] == "expert"]
    means = [_mean(row[split]) for row in experts]
    best = best_places(means)
    names = [label("expert", experts[place]["name"]) for place in best]
    return means[best[0]] if best else -math.inf, names


def score_table(
    rows: Sequence[dict],
    tasks: Sequence[str],
    *,
    task_errors: bool = True,
    dev_errors: bool = True,
) -> Table:
    """The cells as a table for a terminal, in which long task names take several lines.

    :param rows: as in `result["scores"]`.
    :param tasks: the names of those that get a column.
    :param task_errors: whether the scores of single tasks have their standard errors.
    :param dev_errors: whether dev scores have theirs.
    """
    header, *lines = table_cells(rows, tasks, task_errors=task_errors, dev_errors=dev_errors)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column, name in enumerate(header):
        width = max(len(line[column]) for line in lines)
        # As `Text`, in which a name in brackets is no markup.
        table.add_column(Text(_fold(sanitize(name), width)), overflow="fold")
    for line in lines:
        table.add_row(*[Text(sanitize(cell)) for cell in line])
    return table


def _fold(name: str, width: int) -> str:
    """Break a name after underscores into lines of about `width` characters."""
    lines = [""]
    for word in re.split(r"(?<=_)", name):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def print_scores(rows: Sequence[dict], console: Console) -> None:
    """Print the table of scores.

    A terminal that is too narrow shows the standard errors of test scores only, then those of the
    means only, and if that is not enough the means alone. In a log the table is as wide as it needs
    to be.

    :param rows: as in `result["scores"]`.
    :param console: where the table goes.
    """
    tasks = list(rows[0]["dev"])
    table = score_table(rows, tasks)
    if not console.is_terminal:
        console = Console(file=console.file, width=_width(table, console).maximum)
    elif _width(table, console).maximum > console.width:
        table = score_table(rows, tasks, dev_errors=False)
        if _width(table, console).maximum > console.width:
            table = score_table(rows, tasks, task_errors=False, dev_errors=False)
        if _width(table, console).minimum > console.width:
            table = score_table(rows, [], dev_errors=False)
    console.print(table)


def _width(table: Table, console: Console) -> Measurement:
    """The columns that a table needs."""
    return Measurement.get(console, console.options.update(max_width=UNLIMITED), table)
