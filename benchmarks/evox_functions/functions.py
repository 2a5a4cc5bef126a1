"""Functions of EvoX and CEC2022, seen from the box [-1, 1]^n."""

import torch
from evox.core import Problem
from evox.problems.numerical import (
    CEC2022,
    Ackley,
    Ellipsoid,
    Griewank,
    Rastrigin,
    Rosenbrock,
    Schwefel,
    Sphere,
)

FUNCTIONS = {  # EvoX's function and half the width of its usual domain
    "Sphere": (Sphere, 100.0),
    "Ackley": (Ackley, 32.0),
    "Rastrigin": (Rastrigin, 5.12),
    "Griewank": (Griewank, 600.0),
    "Rosenbrock": (Rosenbrock, 30.0),
    "Schwefel": (Schwefel, 500.0),
    "Ellipsoid": (Ellipsoid, 100.0),
}
CEC_MINIMA = (300, 400, 600, 800, 900, 1800, 2000, 2200, 2300, 2400, 2600, 2700)
CEC_HALF_WIDTH = 100.0
NOT_IN_2_DIMENSIONS = (6, 7, 8)  # of CEC2022
CEC_FUNCTIONS = {f"CEC2022-F{number}": number for number in range(1, 1 + len(CEC_MINIMA))}


def exists(function: str, n: int) -> bool:
    """Whether a function is defined in n dimensions."""
    return n != 2 or CEC_FUNCTIONS.get(function) not in NOT_IN_2_DIMENSIONS


def minimum(function: str) -> float:
    """The best value known."""
    return CEC_MINIMA[CEC_FUNCTIONS[function] - 1] if function in CEC_FUNCTIONS else 0.0


class UnitBox(Problem):
    """A problem seen from the box [-1, 1]^n.

    Outside it a point counts as the nearest point inside plus the squared distance to it.

    EvoX's CEC2022 F9, F11 and F12 are NaN within rounding of a component's optimum, where they
    divide by the distance to it. Such a point counts as infinitely bad, and the best value so far
    is that of its neighbours.
    """

    def __init__(self, problem: Problem, half_width: float, shift: torch.Tensor):
        super().__init__()
        self.problem = problem
        self.half_width = half_width
        self.shift = shift

    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        inside = pop.clamp(-1, 1)
        penalty = ((self.half_width * (pop - inside)) ** 2).sum(1)
        fitness = self.problem.evaluate(self.half_width * (inside - self.shift)) + penalty
        return fitness.nan_to_num(nan=torch.inf)


def make_problem(function: str, n: int) -> Problem:
    """A function of EvoX with its optimum moved, or of CEC2022 with its own shift.

    The optimum moves by up to .4 of the half width in every coordinate, away from the middle of the
    box, where some algorithms start. Schwefel's lies near an edge by itself.
    """
    if function in CEC_FUNCTIONS:
        return UnitBox(CEC2022(CEC_FUNCTIONS[function], n), CEC_HALF_WIDTH, torch.zeros(n))
    cls, half_width = FUNCTIONS[function]
    generator = torch.Generator().manual_seed(len(function) * 1000 + n)
    shift = 0.8 * torch.rand(n, generator=generator) - 0.4
    if function == "Schwefel":
        shift = torch.zeros(n)
    return UnitBox(cls(), half_width, shift)
