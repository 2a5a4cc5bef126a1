"""The table of scores at the end of a run: its cells, and how a terminal shows them."""

import math
import re
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from evox_evogm.command.escaping import sanitize
from evox_evogm.command.scores import label
from evox_evogm.command.task_settings import SPLITS

UNLIMITED = 10_000  # columns of a console that is no terminal


def table_cells(rows: Sequence[dict], tasks: Sequence[str]) -> list[list[str]]:
    """A header and a line a model: its name, and `dev / test` for every task and for the mean.

    :param rows: as in `result["scores"]`: name, kind, dev and test scores by task.
    :param tasks: the names of those that get a column. The mean is over all.
    """
    cells = [["model", *tasks, "mean"]]
    for row in rows:
        line = [label(row["kind"], row["name"])]
        for task in tasks:
            line.append(_pair(row["dev"][task], row["test"][task]))
        line.append(_pair(_mean(row["dev"]), _mean(row["test"])))
        cells.append(line)
    return cells


def _mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def _pair(dev: float, test: float) -> str:
    return f"{_short(dev)} / {_short(test)}"


def _short(score: float) -> str:
    text = f"{score:.3f}"
    return text.replace("0.", ".", 1) if 0 <= score < 1 else text


def remarks_on_merge(rows: Sequence[dict]) -> list[str]:
    """What a reader of the table has to know about its last row, the merge: a line each.

    :param rows: as in `result["scores"]`.
    """
    merge = rows[-1]
    if merge["kind"] != "merge":
        return []
    chosen = "the merge with the best observed dev score"
    if merge["name"] != "EvoGM":
        chosen = "the recommended merge, which need not have the best observed dev score"
    remarks = [f"{merge['name']} is {chosen}."]
    better = []
    for split in SPLITS:
        score, expert = _best_expert(rows, split)
        if round(score, 3) > round(_mean(merge[split]), 3):
            better.append(f"on {split} ({expert}, {_short(score)})")
    if better:
        remarks.append(f"It is below the best single expert {' and '.join(better)}.")
    return remarks


def _best_expert(rows: Sequence[dict], split: str) -> tuple[float, str]:
    """The best mean score of an expert, and which it is; -inf where none has scores."""
    best = (-math.inf, "")
    for row in rows:
        mean = _mean(row[split])
        if row["kind"] == "expert" and mean > best[0]:  # NaN is not
            best = (mean, label("expert", row["name"]))
    return best


def score_table(rows: Sequence[dict], tasks: Sequence[str]) -> Table:
    """The cells as a table for a terminal, in which long task names take several lines.

    :param rows: as in `result["scores"]`.
    :param tasks: the names of those that get a column.
    """
    header, *lines = table_cells(rows, tasks)
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

    A terminal that is too narrow for all tasks shows the means alone. In a log the table is as wide
    as it needs to be.

    :param rows: as in `result["scores"]`.
    :param console: where the table goes.
    """
    table = score_table(rows, list(rows[0]["dev"]))
    needed = Measurement.get(console, console.options.update(max_width=UNLIMITED), table)
    if not console.is_terminal:
        console = Console(file=console.file, width=needed.maximum)
    elif needed.minimum > console.width:
        table = score_table(rows, [])
    console.print(table)
