"""Rows of the final table that an earlier result of the same run has: they are not scored again."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from evox_evogm.command.result import EXAMPLES
from evox_evogm.command.scores import ScoreRow
from evox_evogm.command.task_settings import SPLITS
from evox_evogm.resume.journal import from_json


def earlier_rows(out: Path) -> list[ScoreRow]:
    """The rows of the result that a run had with a smaller budget, but for its merge.

    :param out: the run folder, in which `change_budget` has put the result aside.
    :return: the rows of base, experts and averages that were scored; none where there is no such
        result, or its files are damaged.
    """
    results = sorted(out.glob("result_*.json"), key=lambda path: path.stat().st_mtime_ns)
    try:
        result = json.loads(results[-1].read_text(encoding="utf-8"))
        examples = json.loads((out / EXAMPLES).read_text(encoding="utf-8"))
        by_name = {(row["kind"], row["name"]): row for row in examples["rows"]}
        rows = []
        for row in result["scores"]:
            if row["kind"] != "merge" and not row.get("failure"):
                rows.append(_row(row, by_name[row["kind"], row["name"]]))
    except (IndexError, OSError, KeyError, TypeError, ValueError):
        return []
    return rows


def _row(row: Mapping, by_example: Mapping) -> ScoreRow:
    means, examples = {}, {}
    for split in SPLITS:
        means[split] = {name: float(score) for name, score in row[split].items()}
        if not all(map(math.isfinite, means[split].values())):
            raise ValueError("a row without scores")
        examples[split] = {name: from_json(list(v)) for name, v in by_example[split].items()}
    return ScoreRow(row["name"], row["kind"], means["dev"], means["test"], None, examples)
