"""The search that the settings of a run name: `SurrogateEvoGM`, or `EvoGM`, the paper's method."""

from collections.abc import Sequence
from inspect import Parameter, signature
from typing import Any

import torch

from evox_evogm.algorithms.evogm import EvoGM
from evox_evogm.algorithms.gradient_search import GradientSearch
from evox_evogm.algorithms.surrogate import Outcomes
from evox_evogm.algorithms.surrogate_evogm import POP_SIZE, SurrogateEvoGM
from evox_evogm.command.constraint_settings import MULTI_OBJECTIVE, objectives_of
from evox_evogm.command.minibatch_settings import count_of
from evox_evogm.command.multi_objective import POP_SIZE as MULTI_OBJECTIVE_POP_SIZE
from evox_evogm.command.multi_objective import arguments_of, make_multi_objective
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.strict_settings import check_names
from evox_evogm.monitoring.progress import ROUNDING
from evox_evogm.problems.evaluation import GRADIENT_COST
from evox_evogm.problems.scalarization import MEAN, Objective
from evox_evogm.problems.tasks.margins import outcomes_of
from evox_evogm.problems.tasks.task import Task

Search = Any  # SurrogateEvoGM, EvoGM, GradientSearch, or one of EvoX's for several objectives
RECOMMENDING = (SurrogateEvoGM, GradientSearch)
ALGORITHMS: dict[str, Any] = {
    "SurrogateEvoGM": SurrogateEvoGM,
    "EvoGM": EvoGM,
    "GradientSearch": GradientSearch,
}
BOX_GROWTH = 0.5  # half widths by which a box opens where the best merge stands at its edge
# They follow from the other settings, or are objects that a settings file cannot hold.
NOT_SETTINGS = ("clamp", "device", "outcomes", "initial_points", "settings", "blocks")


def check_search(settings: RunSettings) -> None:
    """Refuse arguments that the algorithm of the settings does not have.

    :raises ValueError: naming the first one, and the nearest that it has.
    """
    if settings.algorithm in MULTI_OBJECTIVE:
        check_names(settings.search, arguments_of(settings.algorithm), "search")
        return
    known = search_arguments(settings.algorithm)
    for name in settings.search:
        others = [other for other in ALGORITHMS if name in search_arguments(other)]
        if name not in known and others:
            raise ValueError(
                f"search: found {name!r}, an argument of {' and '.join(others)}; "
                f"{settings.algorithm} has {', '.join(known)}"
            )
    check_names(settings.search, known, "search")


def search_arguments(algorithm: str) -> list[str]:
    """The arguments of an algorithm that a settings file may give.

    :param algorithm: a name of `ALGORITHMS`.
    """
    known = []
    for name, parameter in signature(ALGORITHMS[algorithm]).parameters.items():
        if parameter.kind is Parameter.KEYWORD_ONLY and name not in NOT_SETTINGS:
            known.append(name)
    return known


def population_size(settings: RunSettings, n: int) -> int:
    """P, evaluations per step.

    :param n: the number of coefficients.
    :raises ValueError: if the budget is smaller.
    """
    if settings.algorithm == "SurrogateEvoGM":
        pop_size = settings.pop_size or POP_SIZE
    elif settings.algorithm == "GradientSearch":
        pop_size = settings.pop_size or 1
    elif settings.algorithm in MULTI_OBJECTIVE:
        pop_size = settings.pop_size or MULTI_OBJECTIVE_POP_SIZE
    else:
        pop_size = settings.pop_size or max(2, 2 * n)
    cost = pop_size * cost_of_point(settings)
    evaluations = settings.limit.evaluations
    if evaluations is not None and evaluations < cost - ROUNDING:
        expected = f"expected at least one population, {round(cost, 2):g} evaluations"
        raise ValueError(f"budget: {expected}, found {evaluations}")
    return pop_size


def cost_of_point(settings: RunSettings) -> float:
    """What a point costs in full evaluations: more with its gradient, less on a minibatch."""
    if settings.algorithm != "GradientSearch":
        return 1
    return GRADIENT_COST / count_of(settings)


def recommendation_cost(algorithm: Search, settings: RunSettings) -> float:
    """Evaluations that are kept for `recommended`.

    The point that an algorithm recommends is evaluated, unless the budget is one population, or
    evaluations are on minibatches. EvoGM and algorithms for several objectives recommend none.
    """
    if not isinstance(algorithm, RECOMMENDING) or count_of(settings) > 1:
        return 0
    budget, cost = settings.limit.evaluations, cost_of_point(settings)
    if budget is None:
        return cost
    return cost if budget >= (algorithm.pop_size + 1) * cost else 0


def make_algorithm(
    settings: RunSettings,
    pop_size: int,
    box: tuple[torch.Tensor, torch.Tensor],
    tasks: Sequence[Task],
    n_experts: int,
    objective: Objective = MEAN,
    start: torch.Tensor | None = None,
) -> Search:
    """The algorithm, seeded and before its first step.

    :param pop_size: P, evaluations per step.
    :param box: `lb` and `ub`, two `(n g,)` tensors.
    :param tasks: the dev tasks, whose examples are the outcomes of a merge.
    :param n_experts: n.
    :param objective: with the weights of the tasks.
    :param start: where `GradientSearch` begins, an `(n g,)` tensor: the average of the experts or
        the RegMean merge. By default it is computed from the box, up to rounding.
    :raises ValueError: if an argument is out of range.
    """
    torch.manual_seed(settings.seed)
    shares = objective.shares(tasks) if objective.is_weighted else None
    # Small tensors; on the CPU the search gives the same points whatever device the model is on.
    arguments = {"device": torch.device("cpu"), **settings.search}
    try:
        if settings.algorithm in MULTI_OBJECTIVE:
            return make_multi_objective(
                settings.algorithm, pop_size, len(tasks), box, n_experts, settings.search
            )
        if settings.algorithm == "SurrogateEvoGM":
            outcomes = None
            if objectives_of(settings) == "outcomes":
                outcomes = Outcomes(*outcomes_of(tasks, shares))
            arguments = {"box_growth": BOX_GROWTH, **arguments}
            return SurrogateEvoGM(pop_size, *box, outcomes=outcomes, blocks=n_experts, **arguments)
        if settings.algorithm == "GradientSearch":
            if start is None:
                start = (box[0] + box[1]) / 2 + 1 / n_experts
            outcomes = Outcomes(*outcomes_of(tasks, shares))
            return GradientSearch(start, pop_size, outcomes=outcomes, blocks=n_experts, **arguments)
        # Over the axes of later rounds, good coefficients may leave the box.
        return EvoGM(pop_size, *box, clamp=False, **arguments)
    except ValueError as error:
        raise ValueError(f"search: {error}") from error


def describe_step(algorithm: Search, step: int) -> dict[str, int]:
    """What the history says of a step beside its number: where in the rounds of EvoGM it stands.

    :param step: from 0, which is `init_step`.
    """
    if not isinstance(algorithm, EvoGM):
        return {}
    round_, iteration = algorithm.round_and_iteration(torch.tensor(step))
    return {"round": int(round_), "iteration": int(iteration)}


def recommended(
    algorithm: Search,
    records: Sequence[dict],
    *,
    evaluate: bool,
    objective: Objective = MEAN,
) -> torch.Tensor:
    """The merge to take when the search is over.

    :param records: the history, with at least one score.
    :param evaluate: whether the point that the algorithm recommends may be evaluated.
    :param objective: whose constraints the merge should keep.
    :return: `(n g,)` effective coefficients: what the algorithm recommends, or the best on dev with
        EvoGM, with several objectives, and where the recommended one breaks a constraint.
    """
    if isinstance(algorithm, RECOMMENDING):
        point = algorithm.recommend(evaluate=evaluate)
        if not objective.constraints or keeps_constraints(point, records, objective):
            return point
    scored = [record for record in records if record["score"] is not None]
    best = max(scored, key=lambda record: record["score"])
    return torch.tensor(best["coefficients"])


def keeps_constraints(point: torch.Tensor, records: Sequence[dict], objective: Objective) -> bool:
    """Whether an evaluated point keeps all constraints."""
    coefficients = point.tolist()
    for record in records:
        if record["coefficients"] == coefficients and record["score"] is not None:
            return objective.violation(record["tasks"]) == 0
    return False
