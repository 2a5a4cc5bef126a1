"""Search along gradients: for problems that give the gradient of a smoothed fitness.

Adam (D. P. Kingma and J. Ba, ICLR 2015, arXiv 1412.6980) follows the gradients at perturbed points,
which is gradient descent on the fitness in the mean over perturbations (randomised smoothing, J. C.
Duchi et al., SIAM J. Optim. 22, 2012). Coordinates of one block, such as the coefficients of one
expert in all groups of modules, are shrunk to their mean. The answer is an average of all iterates
in which later ones weigh more (O. Shamir and T. Zhang, ICML 2013). Perturbation, shrinkage and
averaging are against learning few examples by heart.

AdaMerging (E. Yang et al., ICLR 2024) follows gradients of merging coefficients too, of the entropy
of unlabelled inputs.
"""

from typing import Any

import torch
from evox.core import Algorithm, Mutable, Parameter

from evox_evogm.algorithms.archive import failed_as_worst
from evox_evogm.algorithms.checks import (
    check_fitness,
    check_not_negative,
    check_precision,
    check_whole_numbers,
)

BETA_1, BETA_2 = 0.9, 0.99  # Adam's decay rates; a search makes dozens of steps, not thousands
EPSILON = 1e-8  # Adam's
LATER_WEIGHT = 3.0  # Shamir and Zhang's eta: how much more later iterates weigh in the average


class GradientSearch(Algorithm):
    """Adam on a smoothed fitness, for problems that give gradients.

    A problem gives `(P, 1 + S + n)` columns, minimised: the fitness, S outcomes, and the gradient
    of a smooth form of the fitness. `LoRAMergeProblem(..., objectives="gradients")` is one.

    `init_step` evaluates the start. Every `step` moves the iterate along the mean gradient of the
    last population, and evaluates P points around it. A population of one is the default: steps
    average over perturbations as a population does, and move on between.
    """

    def __init__(
        self,
        start: torch.Tensor,
        pop_size: int = 1,
        *,
        outcomes: int = 0,
        blocks: int | None = None,
        lr: float = 0.1,
        perturbation: float = 0.1,
        shrinkage: float = 0.01,
        device: torch.device | None = None,
    ):
        """Set up the search.

        :param start: an `(n,)` tensor, the first iterate.
        :param pop_size: P, evaluations per step.
        :param outcomes: S, columns between fitness and gradient.
        :param blocks: how many blocks of equal length the coordinates form; each is shrunk to its
            mean. n blocks by default, which shrinks nothing.
        :param lr: Adam's learning rate, in units of the coordinates.
        :param perturbation: the standard deviation of the points around an iterate.
        :param shrinkage: of the distance of a coordinate from the mean of its block, added to the
            gradient. 1 / (N s^2) is the weight of a normal prior with deviation s beside the mean
            over N examples.
        :param device: where the search runs. Defaults to torch's default device.
        :raises ValueError: if an argument is out of range.
        """
        super().__init__()
        if not isinstance(start, torch.Tensor) or start.ndim != 1 or not len(start):
            raise ValueError(f"start: expected a tensor (n,), found {start!r}")
        check_precision("start", start)
        if not bool(start.isfinite().all()):
            raise ValueError("start: expected finite numbers, found others")
        check_whole_numbers(1, pop_size=pop_size)
        check_whole_numbers(0, outcomes=outcomes)
        check_not_negative(lr=lr, perturbation=perturbation, shrinkage=shrinkage)
        self.dim = len(start)
        self.blocks = self.dim if blocks is None else blocks
        check_whole_numbers(1, blocks=self.blocks)
        if self.dim % self.blocks:
            raise ValueError(
                f"blocks: expected a divisor of {self.dim} coordinates, found {self.blocks}"
            )
        self.pop_size = pop_size
        self.outputs = outcomes
        device = torch.get_default_device() if device is None else torch.device(device)
        options: dict[str, Any] = {"dtype": start.dtype, "device": device}

        self.lr = Parameter(lr, **options)
        self.perturbation = Parameter(perturbation, **options)
        self.shrinkage = Parameter(shrinkage, **options)
        self.iterate = Mutable(start.clone(), device=device)  # (n,)
        self.average = Mutable(start.clone(), device=device)  # (n,) of the iterates
        self.moments = Mutable(torch.zeros(2, self.dim, **options))  # (2, n)
        self.gradient = Mutable(torch.zeros(self.dim, **options))  # (n,) of the last population
        self.steps = Mutable(torch.zeros((), **options))
        self.pop = Mutable(start.expand(pop_size, -1).clone(), device=device)  # (P, n)
        self.fit = Mutable(torch.full((pop_size,), torch.inf, **options))  # (P,)

    def init_step(self) -> None:
        """Evaluate the start and points around it."""
        around = self.iterate + self._noise()[1:]
        self._evaluate(torch.cat([self.iterate[None], around]))

    def step(self) -> None:
        """Move along the gradient, and evaluate points around the new iterate."""
        self._move()
        self._evaluate(self.iterate + self._noise())

    def recommend(self) -> torch.Tensor:
        """The average of the iterates, an `(n,)` tensor. It is not evaluated itself."""
        return self.average.clone()

    def record_step(self) -> dict[str, torch.Tensor]:
        """The state after a step.

        :return: `pop` (P, n), the last population; `fit` (P,), its fitness, minimised; `average`
            (n,), what `recommend` gives.
        """
        return {"pop": self.pop, "fit": self.fit, "average": self.average}

    def _noise(self) -> torch.Tensor:
        return self.perturbation * torch.randn_like(self.pop)

    def _move(self) -> None:
        """One step of Adam, and the average with the new iterate."""
        blocks = self.iterate.view(self.blocks, -1)
        apart = (blocks - blocks.mean(1, keepdim=True)).flatten()  # (n,)
        gradient = self.gradient + self.shrinkage * apart
        first = BETA_1 * self.moments[0] + (1 - BETA_1) * gradient
        second = BETA_2 * self.moments[1] + (1 - BETA_2) * gradient.square()
        self.moments = torch.stack([first, second])
        self.steps = self.steps + 1
        mean = first / (1 - BETA_1**self.steps)
        size = (second / (1 - BETA_2**self.steps)).sqrt()
        self.iterate = self.iterate - self.lr * mean / (size + EPSILON)
        share = (LATER_WEIGHT + 1) / (self.steps + LATER_WEIGHT)
        self.average = self.average + share * (self.iterate - self.average)

    def _evaluate(self, pop: torch.Tensor) -> None:
        fitness = self.evaluate(pop).to(pop)  # (P, 1 + S + n)
        check_fitness(fitness, (self.pop_size, 1 + self.outputs + self.dim))
        gradients = fitness[:, -self.dim :]  # (P, n)
        known = gradients.isfinite().all(1)  # (P,) not of points that failed
        total = torch.where(known[:, None], gradients, 0.0).sum(0)
        self.gradient = total / known.sum().clamp_min(1)
        self.pop = pop
        self.fit = failed_as_worst(fitness[:, 0])
