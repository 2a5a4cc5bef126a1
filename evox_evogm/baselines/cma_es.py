"""CMA-ES by the package `cmaes`, as an EvoX `Algorithm`.

N. Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; M. Nomura and M. Shibata,
"cmaes: A Simple yet Practical Python Library for CMA-ES", arXiv 2402.01373. mergekit-evolve
searches merges with the average as first mean and sigma 1/6.
"""

import numpy as np
import torch
from evox.core import Algorithm

from evox_evogm.algorithms.archive import failed_as_worst
from evox_evogm.algorithms.checks import check_box, check_precision


class CMAES(Algorithm):
    """CMA-ES for expensive problems.

    Its state is the package's, in NumPy: not for `torch.compile`, `vmap` or `state_dict`.
    """

    def __init__(
        self,
        mean: torch.Tensor,
        sigma: float,
        pop_size: int | None = None,
        *,
        bounds: torch.Tensor | None = None,
        device: torch.device | None = None,
    ):
        """Set up the search; its seed is drawn from torch's generator.

        :param mean: an `(n,)` tensor, the first mean.
        :param sigma: the first step size, in units of the coordinates.
        :param pop_size: evaluations per step. Defaults to 4 + floor(3 ln n).
        :param bounds: an `(n, 2)` tensor of least and largest values, or None.
        :param device: where candidates are evaluated. Defaults to torch's default device.
        :raises ValueError: if `mean` is not a finite vector of float32 or float64, `sigma` not
            positive, or `bounds` no box with the mean inside.
        :raises ModuleNotFoundError: without the package `cmaes`.
        """
        super().__init__()
        _check_start(mean, sigma)
        if bounds is not None:
            _check_bounds(mean, bounds)
        from cmaes import CMA

        self.device = torch.get_default_device() if device is None else torch.device(device)
        self.dtype = mean.dtype
        self.cma = CMA(
            mean.detach().cpu().double().numpy(),
            sigma,
            population_size=pop_size,
            bounds=None if bounds is None else bounds.cpu().double().numpy(),
            seed=int(torch.randint(2**31, ())),
        )
        self.pop_size = self.cma.population_size

    @torch.compiler.disable
    def step(self) -> None:
        """Sample `pop_size` candidates, evaluate them together, and update the distribution."""
        candidates = [self.cma.ask() for _ in range(self.pop_size)]
        pop = torch.tensor(np.stack(candidates), dtype=self.dtype, device=self.device)  # (P, n)
        fitness = failed_as_worst(self.evaluate(pop)).tolist()
        self.cma.tell(list(zip(candidates, fitness, strict=True)))

    def record_step(self) -> dict[str, torch.Tensor]:
        """The `mean` (n,) of the search distribution."""
        return {"mean": torch.tensor(self.cma.mean, dtype=self.dtype)}


def _check_start(mean: torch.Tensor, sigma: float) -> None:
    """Refuse what is no first mean and step size.

    :raises ValueError: naming what was found.
    """
    if mean.ndim != 1 or not mean.dtype.is_floating_point or not 0 < sigma < float("inf"):
        raise ValueError(
            "mean and sigma: expected a floating-point vector and a positive number, "
            f"found {tuple(mean.shape)} {mean.dtype} and {sigma}"
        )
    check_precision("mean", mean)
    if not bool(mean.isfinite().all()):
        raise ValueError(f"mean: expected finite numbers, found {mean.tolist()}")


def _check_bounds(mean: torch.Tensor, bounds: torch.Tensor) -> None:
    """Refuse what are no bounds `(n, 2)` around a first mean `(n,)`.

    :raises ValueError: naming what was found.
    """
    if bounds.shape != (len(mean), 2):
        raise ValueError(f"bounds: expected ({len(mean)}, 2), found {tuple(bounds.shape)}")
    lb, ub = bounds.unbind(1)
    check_box(1, lb, ub)
    if not bool((lb <= mean.to(lb)).all() and (mean.to(lb) <= ub).all()):
        raise ValueError(
            f"mean: expected a point within the bounds {bounds.tolist()}, found {mean.tolist()}"
        )
