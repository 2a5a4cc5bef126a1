"""What stands between a search and the problem: it counts evaluations and keeps them."""

import time
from typing import NamedTuple

import torch
from evox.core import Problem

from evox_evogm.monitoring.progress import ROUNDING
from evox_evogm.problems.evaluation import GRADIENT_COST


class BudgetUsed(Exception):
    """The budget ended in the middle of a population."""


class Row(NamedTuple):
    """An evaluation."""

    budget_used: float
    """Full evaluations until then, this one included."""
    score: float
    """The mean over the dev tasks, maximised."""
    seconds: float
    """Since the start of the search."""
    point: list[float]
    """The n coefficients."""


class Recorder(Problem):
    """Hands populations to the problem until the budget is used, and keeps what was evaluated.

    Methods search [-1, 1]^n, which is moved to where the box of the problem is.
    """

    def __init__(self, problem: Problem, budget: int, outcomes: bool):
        """Start the clock.

        :param problem: with `objectives="outcomes"`.
        :param budget: full evaluations. A pruned merge counts as the fraction of its examples that
            was evaluated.
        :param outcomes: whether the method gets the outcomes beside the score.
        """
        super().__init__()
        self.problem = problem
        self.outcomes = outcomes
        self.rows: list[Row] = []
        self.populations: list[torch.Tensor] = []  # (P, n) each
        self.fitness: list[torch.Tensor] = []  # (P, M) each, maximised
        self.start = time.perf_counter()
        self.evaluation_seconds = 0.0
        self.budget_used = 0.0
        self.until = budget
        self.basis: torch.Tensor | None = None
        self.center = sum(problem.box) / 2
        self.cost = self.recommendation_cost = 1.0  # of a point, and of the recommended one
        self.minibatches = 1
        if problem.objectives == "gradients":
            self.minibatches = problem.minibatches
            self.cost = GRADIENT_COST / self.minibatches
            # On minibatches an average is recommended, and not evaluated.
            self.recommendation_cost = 0.0 if self.minibatches > 1 else self.cost

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        points = self.coefficients(pop)
        if self.problem.racing is None:
            points = points[: int((self.until - self.budget_used) / self.cost + ROUNDING)]
        start = time.perf_counter()
        fitness = self.problem.evaluate(points)
        self.evaluation_seconds += time.perf_counter() - start
        self.populations.append(pop[: len(points)])
        self.fitness.append(fitness)
        self._keep(points, fitness)
        if len(points) < len(pop):
            raise BudgetUsed
        return fitness if self.outcomes else fitness[:, 0]

    @property
    def history(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The points of the method, and all that was found of them, minimised, in order."""
        return torch.cat(self.populations), -torch.cat(self.fitness)

    def _keep(self, points: torch.Tensor, fitness: torch.Tensor) -> None:
        """Add rows, up to the one that would exceed the budget."""
        seconds = time.perf_counter() - self.start
        costs = self._costs(fitness).tolist()
        scores = fitness[:, 0].tolist()
        for cost, score, point in zip(costs, scores, points.tolist(), strict=True):
            self.budget_used += cost
            if self.budget_used > self.until + ROUNDING:
                raise BudgetUsed
            self.rows.append(Row(self.budget_used, score, seconds, point))

    def _costs(self, fitness: torch.Tensor) -> torch.Tensor:
        """What each point took, in full evaluations: the fraction of examples that it was evaluated
        on, 1 where all failed.
        """
        if self.problem.racing is None:
            return torch.full((len(fitness),), self.cost, dtype=torch.float64)
        observed = fitness[:, 1:].isfinite().float().mean(1)
        return torch.where(observed > 0, observed, 1.0)

    def coefficients(self, points: torch.Tensor) -> torch.Tensor:
        """The coefficients that points of a method stand for."""
        effective = points if self.basis is None else points @ self.basis
        return effective + self.center


def best_rows(rows: list[Row], count: int) -> torch.Tensor:
    """The points of the best `count` evaluations, of equals the earlier."""
    best = sorted(rows, key=lambda row: -row.score)[:count]
    return torch.tensor([row.point for row in best])
