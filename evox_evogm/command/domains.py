"""Domains: harmonic means of the scores of tasks that share a `domain` in the settings.

Model Swarms and the EvoGM paper's code score their domains in this way, such as medical (medqa and
medmcqa).
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from evox_evogm.command.number_format import with_error
from evox_evogm.command.objective_errors import harmonic_error
from evox_evogm.command.score_table import errors_of
from evox_evogm.command.scores import ScoreRow, label
from evox_evogm.command.task_settings import SPLITS


def harmonic_mean(scores: Sequence[float]) -> float:
    """The harmonic mean of scores that are better when higher.

    It is 0 if one of them is not above 0, where it has no other meaning, and NaN if one is unknown.
    (The paper's code adds 1e-6 to every score instead.)

    :param scores: at least one.
    """
    if any(map(math.isnan, scores)):
        return math.nan
    if min(scores) <= 0:
        return 0.0
    return statistics.harmonic_mean(scores)


def describe_domains(
    rows: Sequence[ScoreRow], domains: Mapping[str, Sequence[str]]
) -> dict[str, dict]:
    """What `result.json` says of every domain: its tasks, and the harmonic means of every row.

    :param rows: of the final table.
    :param domains: the names of the tasks of each domain.
    """
    described = {}
    for domain, tasks in domains.items():
        scores = []
        for row in rows:
            table: dict = {"name": row.name, "kind": row.kind}
            found = row.as_table()
            errors = {}
            for split in SPLITS:
                table[split] = harmonic_mean([found[split][task] for task in tasks])
                errors[split] = _error(found, split, tasks)
            if any(map(math.isfinite, errors.values())):
                table["errors"] = errors
            scores.append(table)
        described[domain] = {"tasks": list(tasks), "scores": scores}
    return described


def domain_cells(rows: Sequence[Mapping], domains: Mapping[str, Mapping]) -> list[list[str]]:
    """A header and a line a model: its name, and `dev / test` for every domain.

    :param rows: as in `result["scores"]`.
    :param domains: as in `result["domains"]`.
    """
    cells = [["model", *domains]]
    for row in rows:
        line = [label(row["kind"], row["name"])]
        for domain in domains.values():
            means = []
            for split in SPLITS:
                mean = harmonic_mean([row[split][task] for task in domain["tasks"]])
                error = _error(row, split, domain["tasks"])
                means.append(with_error(mean, error))
            line.append(" / ".join(means))
        cells.append(line)
    return cells


def _error(row: Mapping, split: str, tasks: Sequence[str]) -> float:
    """The standard error of a harmonic mean over tasks; NaN if it is unknown.

    :param row: as in `result["scores"]`.
    """
    errors = errors_of(dict(row), split)
    scores = [row[split][task] for task in tasks]
    return harmonic_error(scores, [errors.get(task, math.nan) for task in tasks])
