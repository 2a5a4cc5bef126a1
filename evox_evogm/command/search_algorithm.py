"""The search that the settings of a run name: `SurrogateEvoGM`, or `EvoGM`, the paper's method."""

from collections.abc import Sequence
from inspect import Parameter, signature

import torch

from evox_evogm.algorithms.evogm import EvoGM
from evox_evogm.algorithms.surrogate import Outcomes
from evox_evogm.algorithms.surrogate_evogm import POP_SIZE, SurrogateEvoGM
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.strict_settings import check_names
from evox_evogm.problems.tasks.margins import outcomes_of
from evox_evogm.problems.tasks.task import Task

ALGORITHMS = {"SurrogateEvoGM": SurrogateEvoGM, "EvoGM": EvoGM}
# They follow from the other settings, or are objects that a settings file cannot hold.
NOT_SETTINGS = ("clamp", "device", "outcomes", "initial_points", "settings")


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

    :param n: the number of experts.
    :raises ValueError: if the budget is smaller.
    """
    if settings.algorithm == "SurrogateEvoGM":
        pop_size = settings.pop_size or POP_SIZE
    else:
        pop_size = settings.pop_size or max(2, 2 * n)
    if settings.budget < pop_size:
        expected = f"expected at least one population, {pop_size} evaluations"
        raise ValueError(f"budget: {expected}, found {settings.budget}")
    return pop_size


def recommendation_cost(algorithm: SurrogateEvoGM | EvoGM, budget: int) -> int:
    """Evaluations that are kept for `recommended`.

    SurrogateEvoGM evaluates the point it recommends, unless the budget is one population.
    """
    return 1 if isinstance(algorithm, SurrogateEvoGM) and budget > algorithm.pop_size else 0


def make_algorithm(
    settings: RunSettings,
    pop_size: int,
    box: tuple[torch.Tensor, torch.Tensor],
    tasks: Sequence[Task],
) -> SurrogateEvoGM | EvoGM:
    """The algorithm, seeded and before its first step.

    :param pop_size: P, evaluations per step.
    :param box: `lb` and `ub`, two `(n,)` tensors.
    :param tasks: the dev tasks, whose examples are the outcomes of a merge.
    :raises ValueError: if an argument is out of range.
    """
    torch.manual_seed(settings.seed)
    # Small tensors; on the CPU the search gives the same points whatever device the model is on.
    arguments = {"device": torch.device("cpu"), **settings.search}
    try:
        if settings.algorithm == "SurrogateEvoGM":
            outcomes = Outcomes(*outcomes_of(tasks))
            return SurrogateEvoGM(pop_size, *box, outcomes=outcomes, **arguments)
        # Over the axes of later rounds, good coefficients may leave the box.
        return EvoGM(pop_size, *box, clamp=False, **arguments)
    except ValueError as error:
        raise ValueError(f"search: {error}") from error


def describe_step(algorithm: SurrogateEvoGM | EvoGM, step: int) -> dict[str, int]:
    """What the history says of a step beside its number: where in the rounds of EvoGM it stands.

    :param step: from 0, which is `init_step`.
    """
    if not isinstance(algorithm, EvoGM):
        return {}
    round_, iteration = algorithm.round_and_iteration(torch.tensor(step))
    return {"round": int(round_), "iteration": int(iteration)}


def recommended(
    algorithm: SurrogateEvoGM | EvoGM, records: Sequence[dict], *, evaluate: bool
) -> torch.Tensor:
    """The merge to take when the search is over.

    :param records: the history, with at least one score.
    :param evaluate: whether SurrogateEvoGM may evaluate the point it recommends.
    :return: `(n,)` effective coefficients: what SurrogateEvoGM recommends, or the best on dev.
    """
    if isinstance(algorithm, SurrogateEvoGM):
        return algorithm.recommend(evaluate=evaluate)
    scored = [record for record in records if record["score"] is not None]
    best = max(scored, key=lambda record: record["score"])
    return torch.tensor(best["coefficients"])
