"""Model Swarms: particle swarm optimisation of merged experts, which also avoids the worst point.

S. Feng et al., "Model Swarms: Collaborative Search to Adapt LLM Experts via Swarm Intelligence",
ICML 2025, arXiv 2410.11163. All of its moves are linear combinations of models. So it can be stated
without loss in coefficients: a particle is a point over the experts' deltas.

Where we differ: the published search ends after `patience` iterations without a better global best.
Ours goes on as long as it is stepped.
"""

import torch
from evox.core import Algorithm, Mutable, Parameter

from evox_evogm.algorithms.archive import failed_as_worst
from evox_evogm.algorithms.checks import check_box, check_not_negative
from evox_evogm.baselines.known_points import check_start, initial_population


class ModelSwarms(Algorithm):
    """A swarm of P merged models, not bound to a box.

    Its own start is the experts (one-hots). With fewer experts than particles, the paper fills the
    swarm with interpolations t x_a + (1 - t) x_b of two random experts, t uniform. With more
    experts than particles, the first P experts take part.
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
        """Set up the search and draw its initial swarm; the defaults are the published code's.

        :param pop_size: P, evaluations per step, at least 2. The paper uses 20.
        :param lb: an `(n,)` tensor. With `start="known"` the uniform points are drawn between `lb`
            and `ub`.
        :param ub: an `(n,)` tensor.
        :param start: `own`, or `known`: the points of `initial_population`.
        :param inertia: f_v, weight of the velocity.
        :param cognitive: f_p, weight of the way to the particle's best point.
        :param social: f_g, weight of the way to the best point of all.
        :param repel: f_w, weight of the way from the worst point of all.
        :param step_length: how far a particle goes along its velocity in the first iteration.
        :param step_length_factor: multiplies the step length after each iteration.
        :param least_step_length: where it stops shrinking.
        :param patience: a particle whose best point is patience / 2 iterations old goes back to it
            before it moves.
        :param device: where the search runs. Defaults to torch's default device.
        :raises ValueError: if a setting is out of range.
        """
        super().__init__()
        check_box(pop_size, lb, ub, least=2)
        check_start(start)
        check_not_negative(inertia=inertia, cognitive=cognitive, social=social, repel=repel)
        check_not_negative(step_length=step_length, step_length_factor=step_length_factor)
        check_not_negative(least_step_length=least_step_length, patience=patience)
        if not any((inertia, cognitive, social, repel)):
            raise ValueError(
                "inertia, cognitive, social and repel: expected a positive number among them, "
                "found zeros"
            )
        device = torch.get_default_device() if device is None else torch.device(device)

        self.pop_size = pop_size
        self.dim = lb.shape[0]

        self.inertia = Parameter(inertia, lb.dtype, device)
        self.cognitive = Parameter(cognitive, lb.dtype, device)
        self.social = Parameter(social, lb.dtype, device)
        self.repel = Parameter(repel, lb.dtype, device)
        self.step_length_factor = Parameter(step_length_factor, lb.dtype, device)
        self.least_step_length = Parameter(least_step_length, lb.dtype, device)
        self.patience = Parameter(patience, lb.dtype, device)

        if start == "own":
            pop = experts_and_interpolations(pop_size, self.dim, lb.dtype, device)
        else:
            pop = initial_population(pop_size, lb, ub, device=device)
        unevaluated = torch.full((pop_size,), torch.inf, dtype=lb.dtype, device=device)
        ages = torch.zeros(pop_size, dtype=torch.int64, device=device)
        self.pop = Mutable(pop)  # (P, n)
        self.fit = Mutable(unevaluated)  # (P,)
        self.velocity = Mutable(torch.zeros_like(pop))  # (P, n)
        self.personal_best = Mutable(pop.clone())  # (P, n)
        self.personal_best_fit = Mutable(unevaluated.clone())  # (P,)
        self.global_best = Mutable(pop[0].clone())  # (n,)
        self.global_best_fit = Mutable(unevaluated[0].clone())  # ()
        self.global_worst = Mutable(pop[0].clone())  # (n,)
        self.global_worst_fit = Mutable(-unevaluated[0])  # ()
        self.iterations_without_progress = Mutable(ages)  # (P,)
        self.step_length = Mutable(torch.tensor(step_length, dtype=lb.dtype, device=device))  # ()

    def init_step(self) -> None:
        """Evaluate the initial swarm; a particle's first velocity is the way to a random other."""
        device = self.pop.device
        offsets = torch.randint(1, self.pop_size, (self.pop_size,), device=device)
        others = (torch.arange(self.pop_size, device=device) + offsets) % self.pop_size
        self.velocity = self.pop.index_select(0, others) - self.pop
        self._evaluate()

    def step(self) -> None:
        """Return particles without progress, move all, and remember what is best and worst."""
        strays = (self.iterations_without_progress >= self.patience / 2)[:, None]  # (P, 1)
        position = torch.where(strays, self.personal_best, self.pop)  # (P, n)
        velocity = torch.where(strays, 0, self.velocity)  # (P, n)
        self.velocity = self._steer(position, velocity)
        self.pop = position + self.step_length * self.velocity
        shorter = self.step_length * self.step_length_factor
        self.step_length = torch.maximum(shorter, self.least_step_length)
        self._evaluate()

    def _steer(self, position: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The new velocities `(P, n)`: a weighted mean of four directions.

        Each weight is multiplied by a random number per particle.
        """
        to_personal = self.personal_best - position
        to_global = self.global_best - position
        from_worst = position - self.global_worst
        directions = torch.stack([velocity, to_personal, to_global, from_worst])  # (4, P, n)
        weights = torch.stack([self.inertia, self.cognitive, self.social, self.repel])
        draws = torch.rand(4, self.pop_size, 1, dtype=position.dtype, device=position.device)
        shares = draws * weights[:, None, None]  # (4, P, 1)
        return (shares * directions).sum(0) / shares.sum(0)

    def _evaluate(self) -> None:
        """Evaluate the swarm; keep each particle's best point, and the best and worst of all."""
        self.fit = failed_as_worst(self.evaluate(self.pop).to(self.pop))  # (P,)
        better = self.fit < self.personal_best_fit
        ages = self.iterations_without_progress + 1
        self.personal_best = torch.where(better[:, None], self.pop, self.personal_best)
        self.personal_best_fit = torch.where(better, self.fit, self.personal_best_fit)
        self.iterations_without_progress = torch.where(better, 0, ages)
        points = torch.cat([self.global_best[None], self.pop])  # (1 + P, n)
        fitness = torch.cat([self.global_best_fit[None], self.fit])  # (1 + P,)
        row = fitness.argmin()[None]
        self.global_best = points.index_select(0, row)[0]
        self.global_best_fit = fitness.index_select(0, row)[0]
        points = torch.cat([self.global_worst[None], self.pop])
        fitness = torch.cat([self.global_worst_fit[None], self.fit])
        row = fitness.argmax()[None]
        self.global_worst = points.index_select(0, row)[0]
        self.global_worst_fit = fitness.index_select(0, row)[0]


def experts_and_interpolations(
    pop_size: int, n: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The paper's initial swarm: experts, then interpolations of random pairs of them.

    A pair is one expert twice only where there is no other.

    :param pop_size: P.
    :param n: how many experts there are.
    :return: a `(P, n)` tensor.
    """
    one_hots = torch.eye(n, dtype=dtype, device=device)
    rows = max(0, pop_size - n)
    permutations = torch.rand(rows, n, dtype=torch.float32, device=device).argsort(1)  # (rows, n)
    shares = torch.rand(rows, 1, dtype=dtype, device=device)
    first = one_hots[permutations[:, 0]]  # (rows, n)
    second = one_hots[permutations[:, -1]]
    interpolations = shares * first + (1 - shares) * second
    return torch.cat([one_hots, interpolations])[:pop_size]
