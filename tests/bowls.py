"""A problem whose best point is known, one that sometimes fails, and runs on them."""

import torch
from evox.core import Problem
from evox.workflows import EvalMonitor, StdWorkflow


def bowl(points):
    """The squared distance `(...)` of points `(..., n)` from 0.7 in the first coordinate, -0.2 in
    the others.
    """
    lowest = torch.full_like(points, -0.2)
    lowest[..., 0] = 0.7
    return (points - lowest).square().sum(-1)


class Bowl(Problem):
    """`bowl` as a problem."""

    def evaluate(self, pop):
        return bowl(pop)


class FailingBowl(Problem):
    """`bowl`, but points with a negative first coordinate fail, and those with a large second."""

    def evaluate(self, pop):
        fitness = torch.where(pop[:, 0] < 0, torch.nan, bowl(pop))
        return torch.where(pop[:, 1] > 0.9, torch.inf, fitness)


def box(n, dtype=torch.float32):
    """`lb` and `ub` of the box [-1, 1]^n."""
    return -torch.ones(n, dtype=dtype), torch.ones(n, dtype=dtype)


def evaluated_points(algorithm, steps, problem=None):
    """The points `(steps + 1, P, n)` that `init_step` and some steps evaluate."""
    monitor = EvalMonitor(full_sol_history=True)
    workflow = StdWorkflow(algorithm, problem or Bowl(), monitor)
    workflow.init_step()
    for _ in range(steps):
        workflow.step()
    return torch.stack(monitor.get_solution_history())
