"""Searches with an objective for each task, by EvoX's algorithms, and the front that they find."""

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from evox import algorithms
from evox.core import Algorithm

from evox_evogm.command.constraint_settings import MULTI_OBJECTIVE

POP_SIZE = 16
LEAST_POP_SIZE = 4
LEAST_MOEAD_POP_SIZE = 11  # a tenth, rounded up, are neighbours of a point
INITIAL_STD = 0.5  # of the first points around the average, times 1/sqrt(n) a coordinate
# They follow from the other settings, or are objects that a settings file cannot hold.
NOT_SETTINGS = (
    "pop_size",
    "n_objs",
    "lb",
    "ub",
    "selection_op",
    "mutation_op",
    "crossover_op",
    "data_type",
    "device",
)
Point = tuple[float, ...]


def arguments_of(name: str) -> list[str]:
    """The arguments of an algorithm that the setting `search` may give."""
    parameters = signature(getattr(algorithms, name)).parameters
    return [parameter for parameter in parameters if parameter not in NOT_SETTINGS]


def make_multi_objective(
    name: str,
    pop_size: int,
    n_tasks: int,
    box: tuple[torch.Tensor, torch.Tensor],
    n_experts: int,
    arguments: Mapping[str, Any],
) -> Algorithm:
    """One of EvoX's algorithms before its first step, with a first population that is worth it.

    :param name: one of `MULTI_OBJECTIVE`.
    :param pop_size: P. Some algorithms take fewer, as many as they have reference points.
    :param n_tasks: M, the number of objectives.
    :param box: `lb` and `ub`, two `(n g,)` tensors.
    :param n_experts: n.
    :param arguments: of the algorithm.
    :raises ValueError: if an argument is out of range, or a population too small.
    """
    assert name in MULTI_OBJECTIVE, name
    if pop_size < LEAST_POP_SIZE:
        expected = f"expected a pop_size of at least {LEAST_POP_SIZE} with {name}"
        raise ValueError(f"{expected}, found {pop_size}")
    for argument, value in arguments.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise ValueError(f"{argument}: expected a number above 0, found {value!r}")
    lb, ub = box
    device = torch.device("cpu")
    algorithm = getattr(algorithms, name)(pop_size, n_tasks, lb, ub, device=device, **arguments)
    if name == "MOEAD" and algorithm.n_neighbor < 2:  # it crosses neighbours
        expected = f"expected a pop_size of which MOEAD takes at least {LEAST_MOEAD_POP_SIZE}"
        taken = f"of which it takes {algorithm.pop_size} with {n_tasks} tasks"
        raise ValueError(f"{expected}, found {pop_size}, {taken}")
    algorithm.pop = initial_population(len(algorithm.pop), lb, ub, n_experts)
    return algorithm


def initial_population(
    count: int, lb: torch.Tensor, ub: torch.Tensor, n_experts: int
) -> torch.Tensor:
    """The average of the experts, single experts, and points around the average.

    Half of the points at most are single experts. Where the box is not around 0, as with RegMean,
    there are none.

    :param count: P.
    :param lb: an `(n g,)` tensor.
    :param ub: an `(n g,)` tensor.
    :return: a `(P, n g)` tensor in the box.
    """
    center = (lb + ub) / 2 + 1 / n_experts  # the average, or the RegMean merge
    noise = torch.randn(count, len(lb)) * INITIAL_STD / math.sqrt(len(lb))
    points = center + noise
    points[0] = center
    if bool((lb == -ub).all()):
        groups = len(lb) // n_experts
        singles = torch.eye(n_experts).repeat_interleave(groups, 1)[: count // 2]
        points[1 : 1 + len(singles)] = singles
    return points.clamp(lb, ub)


def front_of(records: Sequence[dict], floor: float | None = None) -> list[dict]:
    """The evaluations of a history that no other beats in every task, best mean first.

    :param records: with the score of the merge, `score`, and scores by task, `tasks`.
    :param floor: evaluations below it are left out, unless all are: they break a constraint.
    :return: of several with the same scores in all tasks the first.
    """
    known: dict[Point, dict] = {}
    for record in records:
        if record["score"] is not None:
            known.setdefault(tuple(record["tasks"].values()), record)
    if floor is not None:
        kept = {scores: found for scores, found in known.items() if found["score"] >= floor}
        known = kept or known
    front = []
    for scores, record in known.items():
        if not any(dominates(other, scores) for other in known):
            front.append(record)
    return sorted(front, key=lambda record: -record["score"])


def dominates(one: Point, other: Point) -> bool:
    """Whether a point is as good as another in every task, and better in one."""
    no_worse = all(a >= b for a, b in zip(one, other, strict=True))
    return no_worse and one != other
