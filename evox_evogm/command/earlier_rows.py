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
        by_name = {}
        for row in examples["rows"]:
            by_name[row["kind"], row["name"]] = row
        rows = []
        for row in result["scores"]:
            if row["kind"] == "merge" or row.get("failure"):
                continue
            by_example = by_name[row["kind"], row["name"]]
            rows.append(_row(row, by_example))
    except (IndexError, OSError, KeyError, TypeError, ValueError):
        return []
    return rows


def _row(row: Mapping, by_example: Mapping) -> ScoreRow:
    """A row of the table as it was scored.

    :param row: what `result.json` says of it.
    :param by_example: its scores by split, task and example.
    """
    means: dict[str, dict[str, float]] = {}
    examples: dict[str, dict[str, list[float]]] = {}
    for split in SPLITS:
        means[split] = {}
        for task, score in row[split].items():
            means[split][task] = float(score)
            if not math.isfinite(means[split][task]):
                raise ValueError("a row without scores")
        examples[split] = {}
        for task, scores in by_example[split].items():
            examples[split][task] = from_json(list(scores))
    return ScoreRow(row["name"], row["kind"], means["dev"], means["test"], None, examples)
