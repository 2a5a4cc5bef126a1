"""What `result.json` and the report say of the objective: weights, constraints and the front.

objective    mean, worst, harmonic or pareto
weights      of the tasks, by name; empty if all are equal
constraints  by task: against, lose, and for dev and test the least score, the score of the
             exported merge, its standard error, and whether it is kept (None where not known)
front        with pareto, best weighted mean on dev first: coefficients and coefficients_by_group
             as of a result, scores on dev and test by task, their errors, and whether the
             merge is the exported one
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from evox_evogm.command.multi_objective import front_of
from evox_evogm.command.result import describe_coefficients
from evox_evogm.command.scores import Candidate, ScoreRow, score_candidates
from evox_evogm.command.task_settings import SPLITS
from evox_evogm.command.tasks import RunTasks
from evox_evogm.command.uncertainty import standard_errors
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.scalarization import Constraint, Objective

if TYPE_CHECKING:
    from evox_evogm.command.settings import RunSettings

KINDS = {"base": "base", "best_expert": "expert", "average": "average"}  # of rows to compare with


def describe_objective(
    settings: "RunSettings", objective: Objective, rows: Sequence[ScoreRow]
) -> dict[str, Any]:
    """The entries of `result.json`, without the front.

    :param objective: of the problem, with the least scores of its constraints.
    :param rows: of the final table, the last of which is the exported merge.
    """
    constraints = {}
    for constraint in objective.constraints:
        constraints[constraint.task] = describe_constraint(constraint, rows)
    return {
        "objective": settings.objective,
        "weights": dict(objective.weights),
        "constraints": constraints,
    }


def describe_constraint(constraint: Constraint, rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """What a constraint asks for on dev and on test, and whether the exported merge keeps it.

    :param rows: as of `describe_objective`.
    """
    described: dict[str, Any] = {"against": constraint.against, "lose": constraint.lose}
    for split in SPLITS:
        least = constraint.least
        if split == "test" and constraint.against is not None:
            least = least_on_test(constraint, rows)
        score = getattr(rows[-1], split)[constraint.task]
        kept = None
        if least is not None and math.isfinite(score):
            kept = replace(constraint, least=least).violation({constraint.task: score}) == 0
        described[split] = {"least": least, "score": score, "kept": kept}
        error = standard_errors(rows[-1].examples.get(split, {})).get(constraint.task, math.nan)
        if math.isfinite(error):
            described[split]["error"] = error
    return described


def least_on_test(constraint: Constraint, rows: Sequence[ScoreRow]) -> float | None:
    """The least test score, by the rows that a constraint compares with; None if none has one."""
    assert constraint.against is not None
    scores = []
    for row in rows:
        if row.kind == KINDS[constraint.against]:
            scores.append(row.test[constraint.task])
    finite = [score for score in scores if math.isfinite(score)]
    return max(finite) - constraint.lose if finite else None


def describe_front(
    problem: LoRAMergeProblem, tasks: RunTasks, records: Sequence[dict], best: torch.Tensor
) -> list[dict[str, Any]]:
    """The merges that no other beats in every dev task, with their test scores.

    :param tasks: in both splits.
    :param records: the history.
    :param best: `(n g,)` coefficients of the exported merge.
    """
    floor = problem.objective.floor if problem.objective.constraints else None
    found = front_of(records, floor)
    candidates = []
    for number, record in enumerate(found):
        point = torch.tensor(record["coefficients"])
        candidates.append(Candidate(f"front {number}", point))
    rows = score_candidates(problem, tasks, candidates, records)
    front = []
    for candidate, row in zip(candidates, rows, strict=True):
        table = row.as_table()
        entry = describe_coefficients(problem, candidate.coefficients)
        entry |= {"dev": table["dev"], "test": table["test"], "errors": table["errors"]}
        exported = torch.equal(candidate.coefficients, best.cpu())
        front.append({**entry, "exported": exported})
    return front
