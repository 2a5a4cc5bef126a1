"""The search that the settings of a run name: `SurrogateEvoGM`, or `EvoGM`, the paper's method."""

from collections.abc import Sequence
from inspect import Parameter, signature
from typing import Literal

import torch

from evox_evogm.algorithms.evogm import EvoGM
from evox_evogm.algorithms.gradient_search import GradientSearch
from evox_evogm.algorithms.surrogate import Outcomes
from evox_evogm.algorithms.surrogate_evogm import POP_SIZE, SurrogateEvoGM
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.strict_settings import check_names
from evox_evogm.problems.evaluation import GRADIENT_COST
from evox_evogm.problems.tasks.margins import outcomes_of
from evox_evogm.problems.tasks.task import Task

Search = SurrogateEvoGM | EvoGM | GradientSearch
ALGORITHMS: dict[str, type[Search]] = {
    "SurrogateEvoGM": SurrogateEvoGM,
    "EvoGM": EvoGM,
    "GradientSearch": GradientSearch,
}
OBJECTIVES: dict[str, Literal["mean", "outcomes", "gradients"]] = {  # what each has to be told
    "SurrogateEvoGM": "outcomes",
    "EvoGM": "mean",
    "GradientSearch": "gradients",
}
# They follow from the other settings, or are objects that a settings file cannot hold.
NOT_SETTINGS = ("clamp", "device", "outcomes", "initial_points", "settings", "blocks")


def check_search(settings: RunSettings) -> None:
    """Refuse arguments that the algorithm of the settings does not have.

    :raises ValueError: naming the first one, and the nearest that it has.
    """
    known = []
    for name, parameter in signature(ALGORITHMS[settings.algorithm]).parameters.items():
        if parameter.kind is Parameter.KEYWORD_ONLY and name not in NOT_SETTINGS:
            known.append(name)
    check_names(settings.search, known, "search")


def population_size(settings: RunSettings, n: int) -> int:
    """P, evaluations per step.

    :param n: the number of coefficients.
    :raises ValueError: if the budget is smaller.
    """
    if settings.algorithm == "SurrogateEvoGM":
        pop_size = settings.pop_size or POP_SIZE
    elif settings.algorithm == "GradientSearch":
        pop_size = settings.pop_size or 1
    else:
        pop_size = settings.pop_size or max(2, 2 * n)
    cost = pop_size * cost_of_point(settings.algorithm)
    if settings.budget < cost:
        expected = f"expected at least one population, {cost} evaluations"
        raise ValueError(f"budget: {expected}, found {settings.budget}")
    return pop_size


def cost_of_point(algorithm: str) -> int:
    """What a point costs in full evaluations: more with its gradient.

    :param algorithm: the name.
    """
    return GRADIENT_COST if OBJECTIVES[algorithm] == "gradients" else 1


def recommendation_cost(algorithm: Search, budget: int) -> int:
    """Evaluations that are kept for `recommended`.

    The point that an algorithm recommends is evaluated, unless the budget is one population. EvoGM
    recommends none.
    """
    if isinstance(algorithm, EvoGM):
        return 0
    cost = cost_of_point(type(algorithm).__name__)
    return cost if budget >= (algorithm.pop_size + 1) * cost else 0


def make_algorithm(
    settings: RunSettings,
    pop_size: int,
    box: tuple[torch.Tensor, torch.Tensor],
    tasks: Sequence[Task],
    n_experts: int,
) -> Search:
    """The algorithm, seeded and before its first step.

    :param pop_size: P, evaluations per step.
    :param box: `lb` and `ub`, two `(n g,)` tensors.
    :param tasks: the dev tasks, whose examples are the outcomes of a merge.
    :param n_experts: n.
    :raises ValueError: if an argument is out of range.
    """
    torch.manual_seed(settings.seed)
    # Small tensors; on the CPU the search gives the same points whatever device the model is on.
    arguments = {"device": torch.device("cpu"), **settings.search}
    try:
        if settings.algorithm == "SurrogateEvoGM":
            outcomes = Outcomes(*outcomes_of(tasks))
            return SurrogateEvoGM(pop_size, *box, outcomes=outcomes, **arguments)
        if settings.algorithm == "GradientSearch":
            # The average of the experts, or the RegMean merge.
            start = (box[0] + box[1]) / 2 + 1 / n_experts
            outcomes = Outcomes(*outcomes_of(tasks))
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


def recommended(algorithm: Search, records: Sequence[dict], *, evaluate: bool) -> torch.Tensor:
    """The merge to take when the search is over.

    :param records: the history, with at least one score.
    :param evaluate: whether the point that the algorithm recommends may be evaluated.
    :return: `(n g,)` effective coefficients: what the algorithm recommends, or with EvoGM the best
        on dev.
    """
    if not isinstance(algorithm, EvoGM):
        return algorithm.recommend(evaluate=evaluate)
    scored = [record for record in records if record["score"] is not None]
    best = max(scored, key=lambda record: record["score"])
    return torch.tensor(best["coefficients"])
