"""Random search: what a search has to beat to have learned anything from its evaluations.

J. Bergstra and Y. Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13, 2012.
"""

import torch
from evox.core import Algorithm, Mutable

from evox_evogm.algorithms.archive import failed_as_worst
from evox_evogm.algorithms.checks import check_box
from evox_evogm.baselines.known_points import initial_population, uniform


class RandomSearch(Algorithm):
    """Points drawn uniformly from a box, after a first step on `initial_population`."""

    def __init__(
        self,
        pop_size: int,
        lb: torch.Tensor,
        ub: torch.Tensor,
        *,
        device: torch.device | None = None,
    ):
        """Set up the search and draw its initial population.

        :param pop_size: P, evaluations per step.
        :param lb: an `(n,)` tensor of least coefficients.
        :param ub: an `(n,)` tensor of largest coefficients.
        :param device: where the search runs. Defaults to torch's default device.
        :raises ValueError: if `pop_size` is under 1, or `lb` and `ub` are not two vectors with lb <
            ub.
        """
        super().__init__()
        check_box(pop_size, lb, ub)
        device = torch.get_default_device() if device is None else torch.device(device)

        self.pop_size = pop_size
        self.dim = lb.shape[0]

        self.lb = Mutable(lb, device=device)  # (n,) never changed, but it moves with the state
        self.ub = Mutable(ub, device=device)  # (n,)
        self.pop = Mutable(initial_population(pop_size, lb, ub, device=device))  # (P, n)
        unevaluated = torch.full((pop_size,), torch.inf, dtype=lb.dtype, device=device)
        self.fit = Mutable(unevaluated)  # (P,)

    def init_step(self) -> None:
        """Evaluate the initial population."""
        self._evaluate(self.pop)

    def step(self) -> None:
        """Evaluate fresh points."""
        self._evaluate(uniform(self.pop_size, self.lb, self.ub))

    def _evaluate(self, pop: torch.Tensor) -> None:
        """Evaluate a (P, n) population."""
        self.pop = pop
        self.fit = failed_as_worst(self.evaluate(pop).to(pop))
