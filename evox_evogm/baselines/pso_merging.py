"""PSO-Merging: the classic particle swarm, with the base and the experts among its first particles.

"PSO-Merging: Merging Models Based on Particle Swarm Optimization", arXiv 2508.19839. There is no
public code, so that this follows the paper.

Where we differ, and why. The paper's particles are whole models. Ours are coefficients over the
experts' deltas, like those of every other search here.

1. The paper's other particles are experts sparsified by DARE, which drops weights at random and
   rescales the rest. No coefficients give such a model. Its expectation is the expert, and
   evaluating that again would teach nothing. So we take an expert rescaled by U(0.5, 1.5). Along
   its expert's own delta a sparsified expert differs by a factor of mean 1 too, which is however
   much nearer to 1.
2. The random numbers are one per particle and term. One per weight would leave the span of the
   experts.
3. Particles start at rest.
"""

import torch
from evox.core import Algorithm, Mutable, Parameter

from evox_evogm.algorithms.archive import failed_as_worst
from evox_evogm.algorithms.checks import check_box, check_not_negative
from evox_evogm.baselines.known_points import check_start, initial_population, known_points


class PSOMerging(Algorithm):
    """A swarm of P merged models, not bound to a box.

    Its own start is the base, the experts, and rescaled experts in turn. With at most n particles
    it is the base and the first experts.
    """

    def __init__(
        self,
        pop_size: int,
        lb: torch.Tensor,
        ub: torch.Tensor,
        *,
        start: str = "own",
        inertia: float = 0.2,
        cognitive: float = 2.0,
        social: float = 2.0,
        device: torch.device | None = None,
    ):
        """Set up the search and draw its initial swarm; the defaults are the paper's.

        :param pop_size: P, evaluations per step.
        :param lb: an `(n,)` tensor. With `start="known"` the uniform points are drawn between `lb`
            and `ub`.
        :param ub: an `(n,)` tensor.
        :param start: `own`, or `known`: the points of `initial_population`.
        :param inertia: w, weight of the velocity.
        :param cognitive: c1, weight of the way to the particle's best point.
        :param social: c2, weight of the way to the best point of all.
        :param device: where the search runs. Defaults to torch's default device.
        :raises ValueError: if a setting is out of range.
        """
        super().__init__()
        check_box(pop_size, lb, ub)
        check_start(start)
        check_not_negative(inertia=inertia, cognitive=cognitive, social=social)
        device = torch.get_default_device() if device is None else torch.device(device)

        self.pop_size = pop_size
        self.dim = lb.shape[0]

        self.inertia = Parameter(inertia, lb.dtype, device)
        self.cognitive = Parameter(cognitive, lb.dtype, device)
        self.social = Parameter(social, lb.dtype, device)

        if start == "own":
            pop = base_and_experts(pop_size, self.dim, lb.dtype, device)
        else:
            pop = initial_population(pop_size, lb, ub, device=device)
        unevaluated = torch.full((pop_size,), torch.inf, dtype=lb.dtype, device=device)
        self.pop = Mutable(pop)  # (P, n)
        self.fit = Mutable(unevaluated)  # (P,)
        self.velocity = Mutable(torch.zeros_like(pop))  # (P, n)
        self.personal_best = Mutable(pop.clone())  # (P, n)
        self.personal_best_fit = Mutable(unevaluated.clone())  # (P,)
        self.global_best = Mutable(pop[0].clone())  # (n,)
        self.global_best_fit = Mutable(unevaluated[0].clone())  # ()

    def init_step(self) -> None:
        """Evaluate the initial swarm."""
        self._evaluate()

    def step(self) -> None:
        """Move every particle, and remember what is best."""
        draws = torch.rand(2, self.pop_size, 1, dtype=self.pop.dtype, device=self.pop.device)
        to_personal, to_global = draws  # two of (P, 1)
        self.velocity = (
            self.inertia * self.velocity
            + self.cognitive * to_personal * (self.personal_best - self.pop)
            + self.social * to_global * (self.global_best - self.pop)
        )
        self.pop = self.pop + self.velocity
        self._evaluate()

    def _evaluate(self) -> None:
        """Evaluate the swarm; keep each particle's best point, and the best of all."""
        self.fit = failed_as_worst(self.evaluate(self.pop).to(self.pop))  # (P,)
        better = self.fit < self.personal_best_fit
        self.personal_best = torch.where(better[:, None], self.pop, self.personal_best)
        self.personal_best_fit = torch.where(better, self.fit, self.personal_best_fit)
        points = torch.cat([self.global_best[None], self.pop])  # (1 + P, n)
        fitness = torch.cat([self.global_best_fit[None], self.fit])  # (1 + P,)
        row = fitness.argmin()[None]
        self.global_best = points.index_select(0, row)[0]
        self.global_best_fit = fitness.index_select(0, row)[0]


def base_and_experts(
    pop_size: int, n: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The initial swarm: the base (zeros), the experts (one-hots), and rescaled experts in turn.

    :param pop_size: P.
    :param n: how many experts there are.
    :return: a `(P, n)` tensor. The factors of rescaled experts are uniform in 0.5 to 1.5.
    """
    base_and_one_hots = known_points(n, dtype, device)[:-1]
    rows = max(0, pop_size - n - 1)
    factors = 0.5 + torch.rand(rows, 1, dtype=dtype, device=device)
    experts = 1 + torch.arange(rows, device=device) % n  # in turn
    rescaled = factors * base_and_one_hots[experts]  # (rows, n)
    return torch.cat([base_and_one_hots, rescaled])[:pop_size]
