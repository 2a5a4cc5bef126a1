"""EvoGM: evolutionary generative optimisation, an EvoX `Algorithm`.

T. Jiang et al., "EvoGM: Learning to Merge LLMs via Evolutionary Generative Optimization", ICML
2026, arXiv 2605.29295, Algorithm 1. Two small networks learn from all earlier tries of a round how
to turn a losing point into a winning one, and make the next population. After each round its best
points become the axes ("experts") of the next round.

Where we differ from the published code: fitness that is known when a round starts is not evaluated
again, and the change of experts is a matrix on the coefficients, so that `evaluate` always sees
points over the original axes.
"""

from collections.abc import Sequence

import torch
from evox.core import Algorithm, Mutable, Parameter

from evox_evogm.algorithms.archive import Archive, append, empty, start_next_round
from evox_evogm.algorithms.checks import (
    check_box,
    check_fitness,
    check_training,
    check_whole_numbers,
)
from evox_evogm.algorithms.generators import generate, initial_parameters, parameter_count
from evox_evogm.algorithms.training import train


class EvoGM(Algorithm):
    """The method of the paper: generators that turn losing points into winning ones.

    A round is one step of initial points and `n_iters` steps of offspring. `n_rounds` rounds are
    `n_rounds * (n_iters + 1) * pop_size` evaluations. Later steps stay in the last round, where the
    worst rows of the history are dropped once it is full.

    - **The first round** begins with the n one-hots, the average (1/n each), and points uniform in
      [-1, 1]^n. If `pop_size` is at most n, it begins with the average and the first one-hots.
    - **A later round** has the best n points of the round before as its axes. Their fitness is
      known. Evaluated are the average of these axes, and `pop_size - 1` points uniform in their
      [-1, 1]^n. If a round saw fewer than n points, the axes that it cannot replace stay.

    The paper's ablations: `dual=False` (one generator), `n_rounds=1`, `cycle_weight=0`.

    `SurrogateEvoGM` needs fewer evaluations; this class is there to reproduce the paper's method
    and to compare with it.
    """

    def __init__(
        self,
        pop_size: int,
        lb: torch.Tensor,
        ub: torch.Tensor,
        *,
        n_rounds: int = 2,
        n_iters: int = 3,
        epochs: int = 200,
        lr: float = 1e-4,
        winner_ratio: float = 0.3,
        cycle_weight: float = 100.0,
        opt_weight: float = 1.0,
        hidden_dims: Sequence[int] = (128, 256, 256, 256, 128),
        dual: bool = True,
        clamp: bool = True,
        device: torch.device | None = None,
    ):
        """Set up the search; the defaults are those of the published code.

        :param pop_size: P, evaluations per step, at least 2. The paper uses 2n.
        :param lb: an `(n,)` tensor, the point that -1 in every coordinate stands for.
        :param ub: an `(n,)` tensor, the point that +1 in every coordinate stands for.
        :param n_rounds: R. Between two rounds the best n points become the new axes.
        :param n_iters: T, steps of offspring per round.
        :param epochs: full-batch training steps before each offspring.
        :param lr: Adam's learning rate.
        :param winner_ratio: rho, the share of the history that counts as winners, in (0, 1].
        :param cycle_weight: a_c, weight of the cycle-consistency loss.
        :param opt_weight: a_o, weight of the distance of G(losers) from the mean of the winners.
        :param hidden_dims: widths of the generators' hidden layers.
        :param dual: train the backward generator too; without it there is no cycle loss.
        :param clamp: keep evaluated points inside the box. Switch it off for merging: over the axes
            of later rounds, products of coefficients may leave the box.
        :param device: where the search runs. Defaults to torch's default device.
        :raises ValueError: if a setting is out of range.
        """
        super().__init__()
        device = torch.get_default_device() if device is None else torch.device(device)
        check_box(pop_size, lb, ub, least=2)
        check_whole_numbers(1, n_rounds=n_rounds, n_iters=n_iters)
        check_training(
            epochs=epochs,
            lr=lr,
            winner_ratio=winner_ratio,
            cycle_weight=cycle_weight,
            opt_weight=opt_weight,
            hidden_dims=hidden_dims,
        )

        self.pop_size = pop_size
        self.dim = lb.shape[0]
        self.n_rounds = n_rounds
        self.n_iters = n_iters
        self.epochs = epochs
        self.clamp = clamp
        self.sizes = [self.dim, *hidden_dims, self.dim]
        self.dtype = lb.dtype

        self.lr = Parameter(lr, self.dtype, device)
        self.winner_ratio = Parameter(winner_ratio, self.dtype, device)
        self.cycle_weight = Parameter(cycle_weight, self.dtype, device)
        self.opt_weight = Parameter(opt_weight, self.dtype, device)

        self.center = Mutable((lb + ub) / 2, device=device)  # (n,) never changed
        self.half_width = Mutable((ub - lb) / 2, device=device)  # (n,) never changed
        history = empty(self.dim + pop_size * (n_iters + 1), self.dim, self.dtype, device)
        self.points = Mutable(history.points)  # (C, n) over the axes of the round, best first
        self.fitness = Mutable(history.fitness)  # (C,)
        self.count = Mutable(history.count)
        axes = torch.eye(self.dim, dtype=self.dtype, device=device)
        self.basis = Mutable(axes)  # (n, n) the axes of the round over the original ones
        self.steps = Mutable(torch.zeros((), dtype=torch.int64, device=device))

        generators = torch.zeros(1 + dual, parameter_count(self.sizes), dtype=self.dtype)
        self.generators = Mutable(generators, device=device)  # (G, N)
        self.moments = Mutable(torch.stack([generators, generators]), device=device)  # (2, G, N)
        self.losses = Mutable(torch.zeros(2, dtype=self.dtype, device=device))

    def init_step(self) -> None:
        """Draw the first generators, and evaluate the initial points of the first round."""
        device = self.generators.device
        self.generators = initial_parameters(self.sizes, len(self.generators), self.dtype, device)
        self._evaluate(self._initial_points())

    def step(self) -> None:
        """One step of Algorithm 1: offspring of the population, or the start of a new round."""
        new_round = self._round_starts()
        if self.n_rounds > 1:
            self._shift_basis(new_round)  # the best n points become the axes
        self._train_generators(new_round)  # on winners and losers of the round's history
        population = self.points[: self.pop_size]  # (P, n) the best so far
        offspring = generate(self.generators[0], self.sizes, population)  # (P, n) G(population)
        self._evaluate(torch.where(new_round, self._fresh_points(), offspring))

    def record_step(self) -> dict[str, torch.Tensor]:
        """The state after a step.

        - `pop` (P, n): the best points of the round as they were evaluated.
        - `fit` (P,): their fitness, minimised.
        - `round` and `iteration` (): both from 0; iteration 0 evaluates the initial points.
        - `basis` (n, n): the axes of the round over the original ones.
        - `losses` (2,): cycle and optimisation loss of the last epoch, before weighting; 0 where
          nothing was trained.

        :return: these tensors by name.
        """
        round_, iteration = self.round_and_iteration(self.steps - 1)
        return {
            "pop": self._to_box(self.points[: self.pop_size]),
            "fit": self.fitness[: self.pop_size],
            "round": round_,
            "iteration": iteration,
            "basis": self.basis,
            "losses": self.losses,
        }

    def round_and_iteration(self, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The round of a step, and its iteration there.

        :param step: a `()` tensor; 0 is `init_step`.
        :return: two `()` tensors, both from 0.
        """
        round_ = (step // (self.n_iters + 1)).clamp(max=self.n_rounds - 1)
        return round_, step - round_ * (self.n_iters + 1)

    def _round_starts(self) -> torch.Tensor:
        return self.round_and_iteration(self.steps)[1] == 0

    def _effective(self, points: torch.Tensor) -> torch.Tensor:
        """Points of the round over the original axes, in units of the box: lambda B_r."""
        effective = points @ self.basis
        return effective.clamp(-1, 1) if self.clamp else effective

    def _to_box(self, points: torch.Tensor) -> torch.Tensor:
        return self.center + self.half_width * self._effective(points)

    def _evaluate(self, points: torch.Tensor) -> None:
        """Evaluate (P, n) points of the round, and append them to its history."""
        fitness = self.evaluate(self._to_box(points)).to(self.points)  # (P,)
        check_fitness(fitness, (self.pop_size,))
        history = Archive(self.points, self.fitness, self.count)
        self.points, self.fitness, self.count = append(history, points, fitness)
        self.steps = self.steps + 1

    def _uniform(self, rows: int) -> torch.Tensor:
        """Points uniform in [-1, 1]^n, a `(rows, n)` tensor."""
        device = self.half_width.device
        return 2 * torch.rand(rows, self.dim, dtype=self.dtype, device=device) - 1

    def _initial_points(self) -> torch.Tensor:
        """One-hots, average and uniform points, a (P, n) tensor."""
        one_hots = torch.eye(self.dim, dtype=self.dtype, device=self.half_width.device)
        average = one_hots.mean(0, keepdim=True)
        if self.pop_size <= self.dim:
            return torch.cat([average, one_hots])[: self.pop_size]
        return torch.cat([one_hots, average, self._uniform(self.pop_size - self.dim - 1)])

    def _fresh_points(self) -> torch.Tensor:
        """The average of a new round's axes, and uniform points over them, a (P, n) tensor."""
        average = torch.full_like(self.half_width, 1 / self.dim)[None]
        return torch.cat([average, self._uniform(self.pop_size - 1)])

    def _shift_basis(self, new_round: torch.Tensor) -> None:
        """B_{r+1} = Lambda_top B_r, and a history of the one-hots whose fitness is known."""
        best = self._effective(self.points[: self.dim])  # (n, n)
        replaced = torch.arange(self.dim, device=best.device) < self.count
        self.basis = torch.where(new_round & replaced[:, None], best, self.basis)
        next_round = start_next_round(Archive(self.points, self.fitness, self.count), self.dim)
        self.points = torch.where(new_round, next_round.points, self.points)
        self.fitness = torch.where(new_round, next_round.fitness, self.fitness)
        self.count = torch.where(new_round, next_round.count, self.count)

    def _train_generators(self, new_round: torch.Tensor) -> None:
        """Train on the history of the round; a new round gets fresh generators instead."""
        device = self.fitness.device
        seed = torch.randint(2**62, (), device=device)
        shape = self.epochs, len(self.fitness)  # (E, C)
        draws = torch.rand(shape, dtype=self.dtype, device=device)
        settings = [self.lr, self.winner_ratio, self.cycle_weight, self.opt_weight]
        _, iteration = self.round_and_iteration(self.steps)
        # Epochs before this step; -1 asks for fresh generators.
        trained_before = torch.where(new_round, -1, (iteration - 1) * self.epochs)
        self.generators, self.moments, self.losses = train(
            self.generators,
            self.moments,
            trained_before,
            self.points,
            self.count,
            draws,
            torch.stack(settings),
            seed,
            self.sizes,
        )
