"""The settings `objective`, `constraints` and `weight` of tasks, and what follows from them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from evox_evogm.command.strict_settings import check_names

if TYPE_CHECKING:
    from evox_evogm.command.settings import RunSettings
    from evox_evogm.problems.scalarization import Objective
    from evox_evogm.problems.tasks.task import Task

# EvoX's algorithms with an objective for each task. Not HypE: its reference point is 1.2 times the
# largest cost, which lies among the points where costs are negative, as those of scores are.
MULTI_OBJECTIVE = ("NSGA2", "NSGA3", "RVEA", "RVEAa", "MOEAD")
FOUND = "least_on_dev"  # what a run found out: the score of the model on dev, less `lose`
KEYS = ("against", "lose", "least", FOUND)
AGAINST = ("base", "best_expert", "average")


def with_default_algorithm(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which `objective: pareto` has an algorithm for it, if none is named."""
    if values.get("objective") == "pareto" and values.get("algorithm") is None:
        return {**values, "algorithm": MULTI_OBJECTIVE[0]}
    return dict(values)


def check_constraints(constraints: Mapping) -> None:
    """Refuse constraints that are not a table of tasks and what they may lose.

    :raises ValueError: in one sentence.
    """
    for task, entry in constraints.items():
        where = f"constraints: task {task!r}"
        if not isinstance(entry, dict) or not entry:
            expected = "expected a table such as {against: base, lose: .01}"
            raise ValueError(f"{where}: {expected}, found {entry!r}")
        check_names(entry, KEYS, where)
        against = entry.get("against", AGAINST[0])
        if against not in AGAINST:
            expected = f"expected against to be one of {', '.join(AGAINST)}"
            raise ValueError(f"{where}: {expected}, found {against!r}")
        for key in ("against", "lose", FOUND):
            if "least" in entry and key in entry:
                expected = "expected least, or against with lose, found least"
                raise ValueError(f"{where}: {expected} and {key}")
        for key in ("lose", "least", FOUND):
            value = entry.get(key, 0)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{where}: expected {key} to be a number, found {value!r}")


def check_objective(settings: "RunSettings") -> None:
    """Refuse an objective that the algorithm, racing or the weights do not go with.

    :raises ValueError: in one sentence.
    """
    objective, algorithm = settings.objective, settings.algorithm
    weights = {str(task.weight) for task in settings.tasks if task.weight != 1}
    if objective == "pareto" and algorithm not in MULTI_OBJECTIVE:
        expected = f"expected one of {', '.join(MULTI_OBJECTIVE)} with objective pareto"
        raise ValueError(f"algorithm: {expected}, found {algorithm}")
    if algorithm in MULTI_OBJECTIVE and objective != "pareto":
        expected = f"expected pareto with algorithm {algorithm}, which takes a score for each task"
        raise ValueError(f"objective: {expected}, found {objective}")
    if objective == "pareto" and len(settings.tasks) < 2:
        raise ValueError("objective: expected two tasks or more with pareto, found one")
    if objective == "worst" and weights:
        expected = "expected no weight with objective worst, which is the least score"
        raise ValueError(f"weight: {expected}, found {', '.join(sorted(weights))}")
    if algorithm == "GradientSearch" and (objective != "mean" or settings.constraints):
        found = f"objective {objective}" if objective != "mean" else "constraints"
        expected = "expected the weighted mean with GradientSearch, whose gradient is known"
        raise ValueError(f"objective: {expected}, found {found}")
    if settings.racing and (objective != "mean" or settings.constraints or weights):
        expected = "expected false with weights, constraints or an objective other than mean"
        raise ValueError(f"racing: {expected}, found true; only the plain mean can be pruned by")


def objectives_of(
    settings: "RunSettings",
) -> Literal["mean", "tasks", "outcomes", "gradients"]:
    """What the algorithm has to be told of a merge, see `LoRAMergeProblem`."""
    if settings.objective == "pareto":
        return "tasks"
    if settings.algorithm == "GradientSearch":
        return "gradients"
    adds_up = settings.objective == "mean" and not settings.constraints
    return "outcomes" if settings.algorithm == "SurrogateEvoGM" and adds_up else "mean"


def objective_of_settings(settings: "RunSettings", tasks: Sequence["Task"]) -> "Objective":
    """What the search makes large. With pareto: what the exported merge is chosen by.

    :param tasks: the dev tasks, in the order of the settings.
    :raises ValueError: if a constraint is that of no task.
    """
    from evox_evogm.problems.scalarization import Constraint, Objective

    weights = {}
    for entry, task in zip(settings.tasks, tasks, strict=True):
        if entry.weight != 1:
            weights[task.name] = float(entry.weight)
    constraints = []
    for task, entry in (settings.constraints or {}).items():
        against = entry.get("against", None if "least" in entry else AGAINST[0])
        lose, least = float(entry.get("lose", 0)), entry.get("least", entry.get(FOUND))
        least = None if least is None else float(least)
        constraints.append(Constraint(str(task), against, lose, least))
    kind = "mean" if settings.objective == "pareto" else settings.objective
    return Objective(kind, weights, tuple(constraints)).for_tasks(tasks)


def resolved(settings: "RunSettings", objective: "Objective") -> dict | None:
    """The setting `constraints` with the least dev score of every task that it left open.

    :param objective: of the problem, whose constraints are resolved.
    """
    if not settings.constraints:
        return settings.constraints
    least = {constraint.task: constraint.least for constraint in objective.constraints}
    found = {}
    for task, entry in settings.constraints.items():
        if "least" not in entry:
            entry = {"against": AGAINST[0], **entry, FOUND: least[str(task)]}
        found[task] = entry
    return found
