"""What the report says of objective, constraints and front, in sentences and in a table."""

import math
from collections.abc import Sequence

from evox_evogm.command.number_format import short, with_error
from evox_evogm.command.objective_errors import objective_error
from evox_evogm.command.score_table import errors_of
from evox_evogm.command.scores import label
from evox_evogm.command.task_settings import SPLITS
from evox_evogm.monitoring.counted import counted
from evox_evogm.problems.scalarization import Objective

WORDS = {"base": "the base", "best_expert": "the best expert", "average": "the average"}


def remarks_on_objective(result: dict) -> list[str]:
    """What a reader has to know of the objective and the constraints: a line each.

    :param result: what `result.json` holds; an older one says nothing of them.
    """
    remarks = []
    kind = result.get("objective", "mean")
    weights = result.get("weights", {})
    if kind == "worst":
        remarks.append("The search made the worst task's score large.")
    elif kind == "harmonic":
        remarks.append("The search made the harmonic mean of the tasks large.")
    elif kind == "pareto":
        merges = counted(len(result.get("front", [])), "merge")
        remarks.append(f"The front has {merges} that no other beats in every dev task.")
    if weights:
        listed = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        remarks.append(f"Tasks weigh 1 in the search, but for {listed}.")
    for task, found in result.get("constraints", {}).items():
        remarks.append(sentence_of(task, found))
    return remarks


def sentence_of(task: str, found: dict) -> str:
    """What became of a constraint, in a sentence.

    :param found: an entry of `constraints`.
    """
    asked = f"Constraint on {task}"
    if found["against"] is not None:
        asked += f", at most {found['lose']:g} below {WORDS[found['against']]}"
    parts = []
    for split in SPLITS:
        least, score, kept = (found[split][key] for key in ("least", "score", "kept"))
        if kept is None:
            parts.append(f"not known on {split}")
        else:
            verdict = "kept" if kept else "broken"
            error = found[split].get("error")
            shown = with_error(float(score), math.nan if error is None else float(error))
            parts.append(f"{verdict} on {split} ({shown}, least {short(least)})")
    return f"{asked}: {' and '.join(parts)}."


def objective_cells(result: dict) -> list[list[str]]:
    """A header and a line for each model: `dev / test` of what the search made large.

    Empty where that is the plain mean, which the table of scores has, and with pareto.

    :param result: what `result.json` holds.
    """
    kind, weights = result.get("objective", "mean"), result.get("weights", {})
    if kind == "pareto" or (kind == "mean" and not weights):
        return []
    objective = Objective(kind, weights)
    name = {"mean": "weighted mean", "worst": "worst task", "harmonic": "harmonic mean"}[kind]
    cells = [["model", name]]
    for row in result["scores"]:
        values = []
        for split in SPLITS:
            scores = {task: float(score) for task, score in row[split].items()}
            known = all(math.isfinite(score) for score in scores.values())
            value = objective.value(scores) if known else math.nan
            error = objective_error(objective, scores, errors_of(row, split))
            values.append(with_error(value, error))
        cells.append([label(row["kind"], row["name"]), " / ".join(values)])
    return cells


def front_cells(front: Sequence[dict]) -> list[list[str]]:
    """A header and a line for each merge of the front: `dev / test` by task, and coefficients.

    Scores have their standard errors where these are known.

    :param front: as in `result["front"]`.
    """
    if not front:
        return []
    cells = [["", *front[0]["dev"], *front[0]["coefficients"], ""]]
    for number, entry in enumerate(front):
        line = [str(number)]
        for task in entry["dev"]:
            scores = []
            for split in SPLITS:
                error = errors_of(entry, split).get(task, math.nan)
                scores.append(with_error(float(entry[split][task]), error))
            line.append(" / ".join(scores))
        line += [f"{value:+.2f}" for value in entry["coefficients"].values()]
        cells.append([*line, "exported" if entry["exported"] else ""])
    return cells


def with_front_merge(result: dict, number: int) -> dict:
    """A result whose merge is another one of its front.

    :param result: what `result.json` holds.
    :param number: of the merge in the front, from 0.
    :raises ValueError: if there is no such merge.
    """
    front = result.get("front", [])
    if not 0 <= number < len(front):
        expected = (
            f"expected a number below {len(front)}" if front else "expected a run for a front"
        )
        advice = "" if front else " (objective: pareto)"
        raise ValueError(f"front: {expected}{advice}, found {number}")
    entry = front[number]
    merged = {**result["scores"][-1]}
    for key in ("dev", "test", "errors"):
        merged[key] = entry[key]
    changed = {key: entry[key] for key in ("coefficients", "coefficients_by_group")}
    return {**result, **changed, "scores": [*result["scores"][:-1], merged]}
