"""Search along gradients: for problems that give the gradient of a smoothed fitness.

Adam (D. P. Kingma and J. Ba, ICLR 2015, arXiv 1412.6980) follows the gradients at perturbed points,
which is gradient descent on the fitness in the mean over perturbations (randomised smoothing, J. C.
Duchi et al., SIAM J. Optim. 22, 2012). Coordinates of one block, such as the coefficients of one
expert in all groups of modules, are shrunk to their mean. The recommended point is an average of
all iterates in which later ones weigh more (O. Shamir and T. Zhang, ICML 2013). Perturbation,
shrinkage and averaging are against overfitting on few examples.

AdaMerging (E. Yang et al., ICLR 2024) follows gradients of merging coefficients too, of the entropy
of unlabelled inputs.
"""

from typing import Any

import torch
from evox.core import Algorithm, Mutable, Parameter

from evox_evogm.algorithms.archive import failed_as_worst
from evox_evogm.algorithms.blocks import check_blocks
from evox_evogm.algorithms.checks import (
    check_fitness,
    check_not_negative,
    check_outcomes,
    check_precision,
    check_whole_numbers,
)
from evox_evogm.algorithms.stopping import gain_by_windows
from evox_evogm.algorithms.surrogate import Outcomes
from evox_evogm.algorithms.workflow_evaluate import WorkflowEvaluate

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
        outcomes: Outcomes | None = None,
        blocks: int | None = None,
        lr: float = 0.15,
        perturbation: float = 0.1,
        shrinkage: float = 0.005,
        device: torch.device | None = None,
    ):
        """Set up the search.

        :param start: an `(n,)` tensor, the first iterate.
        :param pop_size: P, evaluations per step.
        :param outcomes: what the S columns between fitness and gradient mean.
        :param blocks: how many blocks of equal length the coordinates form; each is shrunk to its
            mean. n blocks by default, which shrinks nothing.
        :param lr: Adam's learning rate, in units of the coordinates.
        :param perturbation: the standard deviation of the points around an iterate.
        :param shrinkage: this multiple of a coordinate's distance from the mean of its block is
            added to the gradient. 1 / (N s^2) is the weight of a normal prior with deviation s
            beside the mean over N examples.
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
        if outcomes is None:
            outcomes = Outcomes(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
        outcomes = Outcomes(*check_outcomes(*outcomes))
        check_not_negative(lr=lr, perturbation=perturbation, shrinkage=shrinkage)
        self.dim = len(start)
        self.blocks = check_blocks(blocks, self.dim)
        self.pop_size = pop_size
        self._workflow = WorkflowEvaluate()
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
        self.outcome_weights = Mutable(outcomes.weights.to(**options))  # (S,)
        self.outcome_by_sign = Mutable(outcomes.by_sign, device=device)  # (S,)
        self.best = Mutable(start.clone(), device=device)  # (n,) of all evaluated points
        self.best_smoothed = Mutable(torch.full((), torch.inf, **options))  # its smoothed fitness
        self.pop = Mutable(start.expand(pop_size, -1).clone(), device=device)  # (P, n)
        self.fit = Mutable(torch.full((pop_size,), torch.inf, **options))  # (P,)

    def init_step(self) -> None:
        """Evaluate the start and points around it."""
        self._workflow.evaluate = self.evaluate
        around = self.iterate + self._noise()[1:]
        self._evaluate(torch.cat([self.iterate[None], around]))

    def step(self) -> None:
        """Move along the gradient, and evaluate points around the new iterate."""
        self.iterate, self.average, self.moments = self._next_iterate()
        self.steps = self.steps + 1
        self._evaluate(self.iterate + self._noise())

    def recommend(self, *, evaluate: bool = True) -> torch.Tensor:
        """The average of the iterates, unless an evaluated point has a better smoothed fitness.

        The gradient of the last population leads to one iterate more, which belongs to the average.
        It is evaluated now, which is one evaluation more; not where no workflow has called
        `init_step`, as after `load_state_dict`, of an algorithm that is not `workflow.algorithm`.
        On minibatches it is the average, without an evaluation.

        For one run, not vmapped.

        :param evaluate: whether one evaluation more may be made. Otherwise the average is taken.
        :return: an `(n,)` tensor; before `init_step` the start.
        """
        average = self._next_iterate()[1]
        bound = type(self).evaluate is not Algorithm.evaluate  # the copy that a workflow steps
        call = self.evaluate if bound else self._workflow.evaluate
        if not evaluate or call is None or bool(self.best_smoothed.isposinf()):
            return average
        smoothed = self._smoothed_if_whole(call(average[None]).to(average))[0]
        return average if bool(smoothed <= self.best_smoothed) else self.best.clone()

    def recent_gain(self, points: torch.Tensor, fitness: torch.Tensor, last: int) -> float:
        """What the last evaluations are better by, in the mean, than as many before them.

        :param points: an `(N, n)` tensor, what was evaluated, in order.
        :param fitness: an `(N, 1 + S)` tensor or one with gradients, minimised.
        :param last: how many evaluations, at most half of N.
        :return: a difference in smoothed fitness.
        :raises ValueError: if there are not twice as many evaluations.
        """
        fitness = fitness.to(self.outcome_weights)
        smoothed = self.smoothed(fitness)
        return gain_by_windows(torch.where(fitness[:, 0].isfinite(), smoothed, torch.nan), last)

    def record_step(self) -> dict[str, torch.Tensor]:
        """The state after a step.

        :return: `pop` (P, n), the last population; `fit` (P,), its fitness, minimised; `average`
            (n,), that of all iterates.
        """
        return {"pop": self.pop, "fit": self.fit, "average": self.average}

    def _noise(self) -> torch.Tensor:
        """Perturbations of an iterate, a (P, n) tensor."""
        return self.perturbation * torch.randn_like(self.pop)

    def _next_iterate(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The next iterate by Adam, the average with it, and Adam's moments."""
        blocks = self.iterate.view(self.blocks, -1)
        apart = (blocks - blocks.mean(1, keepdim=True)).flatten()  # (n,)
        gradient = self.gradient + self.shrinkage * apart
        first = BETA_1 * self.moments[0] + (1 - BETA_1) * gradient
        second = BETA_2 * self.moments[1] + (1 - BETA_2) * gradient.square()
        steps = self.steps + 1
        mean = first / (1 - BETA_1**steps)
        size = (second / (1 - BETA_2**steps)).sqrt()
        iterate = self.iterate - self.lr * mean / (size + EPSILON)
        share = (LATER_WEIGHT + 1) / (steps + LATER_WEIGHT)
        average = self.average + share * (iterate - self.average)
        return iterate, average, torch.stack([first, second])

    def _evaluate(self, pop: torch.Tensor) -> None:
        """Evaluate (P, n) points; keep their mean gradient, and the best point so far."""
        fitness = self.evaluate(pop).to(pop)  # (P, 1 + S + n)
        outputs = len(self.outcome_weights)
        check_fitness(fitness, (self.pop_size, 1 + outputs + self.dim))
        gradients = fitness[:, -self.dim :]  # (P, n)
        known = gradients.isfinite().all(1)  # (P,) not of points that failed
        total = torch.where(known[:, None], gradients, 0.0).sum(0)
        self.gradient = total / known.sum().clamp_min(1)
        self.pop = pop
        self.fit = failed_as_worst(fitness[:, 0])
        smoothed = self._smoothed_if_whole(fitness)  # (P,)
        place = smoothed.argmin()
        better = smoothed[place] < self.best_smoothed
        self.best = torch.where(better, pop[place], self.best)
        self.best_smoothed = torch.where(better, smoothed[place], self.best_smoothed)

    def _smoothed_if_whole(self, fitness: torch.Tensor) -> torch.Tensor:
        """`smoothed`, a (P,) tensor; infinite where outcomes are not known, as on minibatches."""
        outcomes = fitness[:, 1 : 1 + len(self.outcome_weights)]  # (P, S)
        return torch.where(outcomes.isnan().any(1), torch.inf, self.smoothed(fitness))

    def smoothed(self, fitness: torch.Tensor) -> torch.Tensor:
        """The fitness without steps: what counts by its sign counts as the logistic of its value.

        Without outcomes it is the fitness itself. Outcomes that are not known, as those outside of
        a minibatch, are left out. Where none is known it is the worst.

        :param fitness: a `(P, 1 + S + n)` tensor, or without the gradient `(P, 1 + S)`.
        :return: a `(P,)` tensor, minimised.
        """
        outcomes = fitness[:, 1 : 1 + len(self.outcome_weights)]  # (P, S)
        if not outcomes.shape[1]:
            return failed_as_worst(fitness[:, 0])
        counted = torch.where(self.outcome_by_sign, outcomes.sigmoid(), outcomes)
        known = ~outcomes.isnan()  # (P, S)
        total = torch.where(known, counted, 0.0) @ self.outcome_weights
        part = known.to(counted) @ self.outcome_weights / self.outcome_weights.sum()
        return failed_as_worst(torch.where(known.all(1), total, total / part))
