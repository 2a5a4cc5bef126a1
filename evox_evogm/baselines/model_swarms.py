"""Model Swarms: particle swarm optimisation of merged experts, with a pull away from the worst point.

S. Feng et al., "Model Swarms: Collaborative Search to Adapt LLM Experts via Swarm Intelligence", ICML 2025, arXiv 2410.11163.
All of its moves are linear combinations of models, so that it can be stated without loss in coefficients: a particle is a
point over the experts' deltas.

Where we differ: it goes on as long as it is stepped, where the published search ends after `patience` iterations without a
better global best.
"""

import torch
from evox.core import Algorithm, Mutable, Parameter

from evox_evogm.algorithms.archive import failed_as_worst
from evox_evogm.baselines.known_points import check_box, first_population


class ModelSwarms(Algorithm):
    """A swarm of P merged models, not bound to a box.

    Its own start is the experts (one-hots). With fewer experts than particles, the paper fills the swarm with interpolations
    t x_a + (1 - t) x_b of two experts, drawn at random, t uniform; with more, the first P experts take part.
    """

    def __init__(
        self,
        pop_size: int,
        lb: torch.Tensor,
        ub: torch.Tensor,
        *,
        start: str = "own",
        inertia: float = 0.4,
        cognitive: float = 0.3,
        social: float = 0.3,
        repel: float = 0.3,
        step_length: float = 1.0,
        step_length_factor: float = 0.95,
        least_step_length: float = 0.1,
        patience: float = 10,
        device: torch.device | None = None,
    ):
        """Set up the search and draw its first points; the defaults are those of the published code.

        :param pop_size: P, evaluations per step, at least 2. The paper uses 20.
        :param lb: an `(n,)` tensor; with `start="known"` the first uniform points are drawn between `lb` and `ub`.
        :param ub: an `(n,)` tensor.
        :param start: `own`, or `known`: the points that EvoGM starts with (`first_population`).
        :param inertia: f_v, weight of the velocity.
        :param cognitive: f_p, weight of the way to the particle's best point.
        :param social: f_g, weight of the way to the best point of all.
        :param repel: f_w, weight of the way from the worst point of all.
        :param step_length: how far a particle goes along its velocity in the first iteration.
        :param step_length_factor: what the step length is multiplied by after each iteration.
        :param least_step_length: where it stops shrinking.
        :param patience: a particle whose best point is patience / 2 iterations old goes back to it, before each move.
        :param device: where the search runs. Defaults to torch's default device.
        :raises ValueError: if a setting is out of range.
        """
        super().__init__()
        check_box(pop_size, lb, ub, least=2)
        if start not in ("own", "known"):
            raise ValueError(f"start: expected own or known, found {start!r}")
        weights = {"inertia": inertia, "cognitive": cognitive, "social": social, "repel": repel}
        lengths = {"step_length": step_length, "step_length_factor": step_length_factor}
        lengths |= {"least_step_length": least_step_length, "patience": patience}
        for name, value in {**weights, **lengths}.items():
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"{name}: expected a number of at least 0, found {value!r}")
        if not any(weights.values()):
            raise ValueError(
                "inertia, cognitive, social and repel: expected a positive number among them, found zeros"
            )
        device = torch.get_default_device() if device is None else torch.device(device)

        self.pop_size = pop_size
        self.dim = lb.shape[0]

        for name, value in weights.items():
            setattr(self, name, Parameter(value, lb.dtype, device))
        self.step_length_factor = Parameter(step_length_factor, lb.dtype, device)
        self.least_step_length = Parameter(least_step_length, lb.dtype, device)
        self.patience = Parameter(patience, lb.dtype, device)

        if start == "own":
            pop = experts_and_interpolations(pop_size, self.dim, lb.dtype, device)
        else:
            pop = first_population(pop_size, lb, ub, device=device)
        unknown = torch.full((pop_size,), torch.inf, dtype=lb.dtype, device=device)
        self.pop = Mutable(pop)  # (P, n)
        self.fit = Mutable(unknown)  # (P,)
        self.velocity = Mutable(torch.zeros_like(pop))  # (P, n)
        self.personal_best = Mutable(pop.clone())  # (P, n)
        self.personal_best_fit = Mutable(unknown.clone())  # (P,)
        self.global_best = Mutable(pop[0].clone())  # (n,)
        self.global_best_fit = Mutable(unknown[0].clone())  # ()
        self.global_worst = Mutable(pop[0].clone())  # (n,)
        self.global_worst_fit = Mutable(-unknown[0])  # ()
        self.iterations_without_progress = Mutable(
            torch.zeros(pop_size, dtype=torch.int64, device=device)
        )  # (P,)
        self.step_length = Mutable(torch.tensor(step_length, dtype=lb.dtype, device=device))  # ()

    def init_step(self) -> None:
        """Evaluate the first points; a particle's first velocity is the way to a random other one."""
        indices = torch.arange(self.pop_size, device=self.pop.device)
        others = (
            indices + torch.randint(1, self.pop_size, (self.pop_size,), device=self.pop.device)
        ) % self.pop_size
        self.velocity = self.pop.index_select(0, others) - self.pop
        self._evaluate()

    def step(self) -> None:
        """One iteration: return particles without progress, move all, remember what is best and worst."""
        strays = (self.iterations_without_progress >= self.patience / 2)[:, None]  # (P, 1)
        position = torch.where(strays, self.personal_best, self.pop)  # (P, n)
        velocity = torch.where(strays, 0, self.velocity)  # (P, n)
        weights = torch.stack([self.inertia, self.cognitive, self.social, self.repel])
        self.velocity = steered(
            velocity, position, self.personal_best, self.global_best, self.global_worst, weights
        )
        self.pop = position + self.step_length * self.velocity
        self.step_length = torch.maximum(
            self.step_length * self.step_length_factor, self.least_step_length
        )
        self._evaluate()

    def _evaluate(self) -> None:
        self.fit = failed_as_worst(self.evaluate(self.pop).to(self.pop))  # (P,)
        better = self.fit < self.personal_best_fit
        self.personal_best = torch.where(better[:, None], self.pop, self.personal_best)
        self.personal_best_fit = torch.where(better, self.fit, self.personal_best_fit)
        self.iterations_without_progress = torch.where(
            better, 0, self.iterations_without_progress + 1
        )
        points = torch.cat([self.global_best[None], self.pop])
        self.global_best, self.global_best_fit = least(
            points, torch.cat([self.global_best_fit[None], self.fit])
        )
        points = torch.cat([self.global_worst[None], self.pop])
        self.global_worst, negated = least(
            points, -torch.cat([self.global_worst_fit[None], self.fit])
        )
        self.global_worst_fit = -negated


def experts_and_interpolations(
    pop_size: int, n: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The paper's first swarm, a `(P, n)` tensor; a pair may be one expert twice only where there is no other."""
    one_hots = torch.eye(n, dtype=dtype, device=device)
    rows = max(0, pop_size - n)
    pairs = torch.rand(rows, n, device=device).argsort(1)  # (rows, n)
    shares = torch.rand(rows, 1, dtype=dtype, device=device)
    filled = shares * one_hots[pairs[:, 0]] + (1 - shares) * one_hots[pairs[:, -1]]
    return torch.cat([one_hots, filled])[:pop_size]


def steered(
    velocity: torch.Tensor,
    position: torch.Tensor,
    personal_best: torch.Tensor,
    global_best: torch.Tensor,
    global_worst: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The new velocities (P, n): a weighted mean of four directions, a random share of each weight per particle."""
    directions = torch.stack(
        [velocity, personal_best - position, global_best - position, position - global_worst]
    )
    shares = (
        torch.rand(4, len(position), 1, dtype=position.dtype, device=position.device)
        * weights[:, None, None]
    )
    return (shares * directions).sum(0) / shares.sum(0)


def least(points: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The point (n,) with the least value, and that value (); of equals, the first."""
    row = values.argmin()[None]
    return points.index_select(0, row)[0], values.index_select(0, row)[0]
