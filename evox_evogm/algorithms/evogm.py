"""EvoGM: evolutionary generative optimisation, an EvoX `Algorithm`.

T. Jiang et al., "EvoGM: Learning to Merge LLMs via Evolutionary Generative Optimization", ICML 2026, arXiv 2605.29295,
Algorithm 1. Two small networks learn from all earlier tries of a round how to turn a losing point into a winning one, and
propose the next population; after each round its best points become the axes ("experts") of the next round.

Where we differ from the published code: by default a surrogate chooses what is evaluated (`surrogate.py`), and there is one
round. With `proposal="paper"`, scores that are known when a round starts are not evaluated again, and the change of experts
is a matrix on the coefficients, so that `evaluate` always sees points over the original axes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from evox.core import Algorithm, Mutable, Parameter

from evox_evogm.algorithms.archive import Archive, append, empty, start_next_round
from evox_evogm.algorithms.generators import generate, initial_parameters, parameter_count
from evox_evogm.algorithms.surrogate import ROWS, Outcomes, answer, propose
from evox_evogm.algorithms.training import train

MOVED = 500  # candidates that the generator has moved
LONGEST_STEP = 1.6  # of a candidate along the way that the generator shows, which is 1 long
EPOCHS = {"screened": 50, "paper": 200}
SCREENED_POP_SIZE = (
    3  # the surrogate learns from every population: small ones are better (benchmarks/README.md)
)
FIRST_SPREAD = 0.5  # typical distance of first points from the average, in half widths: most of the box is too far for a merge


class EvoGM(Algorithm):
    """Evolutionary generative optimisation in a box, at its best where every evaluation is expensive.

    `init_step` and every `step` evaluate `pop_size` points. By default (`proposal="screened"`) they are the most promising of
    thousands of candidates, the generators' proposals among them, by a Gaussian process on all evaluations (`surrogate.py`; of
    more than 256 the best). The first are the average of the axes (1/n each) and points around it, and there is one round.
    What follows is the method of the paper, `proposal="paper"`, which is there to reproduce it and to compare with.

    A round is one step of first points and `n_iters` steps of proposals; `n_rounds` rounds are
    `n_rounds * (n_iters + 1) * pop_size` evaluations. Later steps go on in the last round, where the worst rows of the history
    make room once it is full.

    First points of the first round: the n one-hots, the average (1/n each), the rest uniform in [-1, 1]^n (with
    `pop_size` of at most n: the average and the first one-hots). First points of a later round: its one-hots are the best n
    of the round before, so they enter the history with the scores they have, and their places go to fresh points: the average
    of the new axes, and `pop_size - 1` points uniform in their [-1, 1]^n. (When a round saw fewer than n points, the axes
    that it cannot replace stay.)

    The paper's ablations: `dual=False` (one generator), `n_rounds=1`, `cycle_weight=0`.
    """

    def __init__(
        self,
        pop_size: int,
        lb: torch.Tensor,
        ub: torch.Tensor,
        *,
        proposal: Literal["screened", "paper"] = "screened",
        outcomes: Outcomes | None = None,
        n_rounds: int = 2,
        n_iters: int = 3,
        epochs: int | None = None,
        lr: float = 1e-4,
        winner_ratio: float = 0.3,
        cycle_weight: float = 100.0,
        opt_weight: float = 1.0,
        hidden_dims: Sequence[int] = (128, 256, 256, 256, 128),
        dual: bool = True,
        clamp: bool = True,
        device: torch.device | None = None,
    ):
        """Set up the search; the defaults are those of the published code, but for `proposal` and `epochs`.

        :param pop_size: P, evaluations per step, at least 2. 3 is a good start, the paper's method uses 2n.
        :param lb: an `(n,)` tensor, the point that -1 in every coordinate stands for.
        :param ub: an `(n,)` tensor, the point that +1 in every coordinate stands for.
        :param proposal: `"screened"`, the most promising of many candidates by a Gaussian process on all evaluations; or
            `"paper"`, what the generator makes of the population.
        :param outcomes: what the further columns of fitness mean, if the problem gives `(P, 1 + S)`; used by `"screened"`.
        :param n_rounds: R, rounds of `"paper"`; between two rounds the best n points become the new axes.
        :param n_iters: T, proposals per round of `"paper"`.
        :param epochs: full-batch training steps before each proposal. Defaults to 200, as published, with `"paper"`, and to 50
            with `"screened"`, whose populations are far smaller.
        :param lr: Adam's learning rate.
        :param winner_ratio: rho, the share of the history that counts as winners, in (0, 1].
        :param cycle_weight: a_c, weight of the cycle-consistency loss.
        :param opt_weight: a_o, weight of the distance of G(losers) from the mean of the winners.
        :param hidden_dims: widths of the generators' hidden layers.
        :param dual: train the backward generator too; without it there is no cycle loss.
        :param clamp: with `"paper"`, keep evaluated points inside the box. For merging it is off: over the axes of later
            rounds, products of coefficients may leave it. `"screened"` always stays inside.
        :param device: where the search runs. Defaults to torch's default device.
        :raises ValueError: if a setting is out of range.
        """
        super().__init__()
        device = torch.get_default_device() if device is None else torch.device(device)
        for name, value in {"lb": lb, "ub": ub}.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"{name}: expected a tensor, found {value!r}")
        if (
            lb.ndim != 1
            or lb.shape != ub.shape
            or lb.dtype != ub.dtype
            or not lb.dtype.is_floating_point
            or len(lb) < 1
        ):
            raise ValueError(
                "lb and ub: expected two floating-point vectors of one length and dtype, "
                f"found {tuple(lb.shape)} {lb.dtype} and {tuple(ub.shape)} {ub.dtype}"
            )
        if not bool((lb < ub).all()):
            raise ValueError(
                f"lb and ub: expected lb < ub in every coordinate, found lb {lb.tolist()}, ub {ub.tolist()}"
            )
        if not isinstance(hidden_dims, Sequence):
            raise ValueError(f"hidden_dims: expected a sequence of widths, found {hidden_dims!r}")
        if proposal not in EPOCHS:
            raise ValueError(f'proposal: expected "paper" or "screened", found {proposal!r}')
        epochs = EPOCHS[proposal] if epochs is None else epochs
        whole = {
            "pop_size": (pop_size, 2),
            "n_rounds": (n_rounds, 1),
            "n_iters": (n_iters, 1),
            "epochs": (epochs, 1),
        }
        whole |= {f"hidden_dims[{index}]": (width, 1) for index, width in enumerate(hidden_dims)}
        for name, (value, least) in whole.items():
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name}: expected a whole number of at least {least}, found {value!r}"
                )
        for name, value in {
            "lr": lr,
            "cycle_weight": cycle_weight,
            "opt_weight": opt_weight,
        }.items():
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"{name}: expected a number of at least 0, found {value!r}")
        if not isinstance(winner_ratio, (int, float)) or not 0 < winner_ratio <= 1:
            raise ValueError(f"winner_ratio: expected a number in (0, 1], found {winner_ratio!r}")

        none = torch.zeros(0, dtype=lb.dtype)
        weights, by_sign = (none, none.bool()) if outcomes is None else outcomes
        if not (isinstance(weights, torch.Tensor) and isinstance(by_sign, torch.Tensor)):
            raise ValueError(
                f"outcomes: expected two tensors, weights and by_sign, found {type(weights)} and {type(by_sign)}"
            )
        if weights.ndim != 1 or weights.shape != by_sign.shape or by_sign.dtype != torch.bool:
            raise ValueError(
                f"outcomes: expected weights (S,) and by_sign (S,) of bool, found {tuple(weights.shape)} {weights.dtype} and "
                f"{tuple(by_sign.shape)} {by_sign.dtype}"
            )
        if not bool((weights >= 0).all()):
            raise ValueError(
                f"outcomes: expected weights of at least 0, found {float(weights.min())}"
            )

        self.pop_size = pop_size
        self.dim = lb.shape[0]
        self.screened = proposal == "screened"
        self.n_rounds = 1 if self.screened else n_rounds
        self.n_iters = n_iters
        self.epochs = epochs
        self.clamp = clamp
        self.sizes = [self.dim, *hidden_dims, self.dim]
        self.dtype = lb.dtype

        self.lr = Parameter(lr, self.dtype, device)
        self.winner_ratio = Parameter(winner_ratio, self.dtype, device)
        self.cycle_weight = Parameter(cycle_weight, self.dtype, device)
        self.opt_weight = Parameter(opt_weight, self.dtype, device)

        self.center = Mutable(
            (lb + ub) / 2, device=device
        )  # (n,) never changed, but it moves with the state
        self.half_width = Mutable((ub - lb) / 2, device=device)  # (n,)
        self.outcome_weights = Mutable(weights.to(device, self.dtype))  # (S,)
        self.outcome_by_sign = Mutable(by_sign.to(device))  # (S,)
        rows = max(ROWS, pop_size) if self.screened else self.dim + pop_size * (n_iters + 1)
        history = empty(rows, self.dim, self.dtype, device)
        self.outcomes = Mutable(
            torch.zeros(rows, len(weights), dtype=self.dtype, device=device)
        )  # (C, S)
        self.points = Mutable(history.points)  # (C, n) in the axes of the round
        self.fitness = Mutable(history.fitness)  # (C,)
        self.count = Mutable(history.count)
        self.basis = Mutable(
            torch.eye(self.dim, dtype=self.dtype, device=device)
        )  # (n, n), row = axis of the round
        self.steps = Mutable(torch.zeros((), dtype=torch.int64, device=device))
        networks = 2 if dual else 1
        self.generators = Mutable(
            torch.zeros(networks, parameter_count(self.sizes), dtype=self.dtype, device=device)
        )  # (G, N)
        self.moments = Mutable(
            torch.zeros(2, *self.generators.shape, dtype=self.dtype, device=device)
        )
        self.losses = Mutable(torch.zeros(2, dtype=self.dtype, device=device))

    def init_step(self) -> None:
        """Draw the first generators, and evaluate the first points of the first round."""
        self.generators = initial_parameters(
            self.sizes, len(self.generators), self.dtype, self.generators.device
        )
        self._evaluate(self._first_points())

    def step(self) -> None:
        """One step of Algorithm 1: the first points of a new round, or proposals of the trained generators, screened."""
        new_round = self._round_starts()
        if self.n_rounds > 1:
            self._shift_basis(new_round)
        self._train_generators(new_round)
        proposals = (
            self._screened_proposals()
            if self.screened
            else self._moved(self.points[: self.pop_size])
        )  # (P, n)
        self._evaluate(torch.where(new_round, self._fresh_points(), proposals))

    def record_step(self) -> dict[str, torch.Tensor]:
        """The state after a step.

        :return: `pop` (P, n), the best points of the round as they were evaluated; `fit` (P,), their fitness, minimised;
            `round` and `iteration` (), both from 0, iteration 0 being the first points; `basis` (n, n), the axes of the
            round over the original ones; `losses` (2,), cycle and optimisation loss of the last epoch, before weighting
            (0 where nothing was trained).
        """
        round_, iteration = self.round_and_iteration(self.steps - 1)
        return {
            "pop": self._to_box(self._effective(self.points[: self.pop_size])),
            "fit": self.fitness[: self.pop_size],
            "round": round_,
            "iteration": iteration,
            "basis": self.basis,
            "losses": self.losses,
        }

    def _history(self) -> Archive:
        return Archive(self.points, self.fitness, self.count)

    def _remember(self, history: Archive) -> None:
        self.points, self.fitness, self.count = history

    def round_and_iteration(self, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where step `step` (0 is `init_step`) stands: its round and its iteration there, both from 0."""
        round_ = (step // (self.n_iters + 1)).clamp(max=self.n_rounds - 1)
        return round_, step - round_ * (self.n_iters + 1)

    def _round_starts(self) -> torch.Tensor:
        return self.round_and_iteration(self.steps)[1] == 0

    def _effective(self, points: torch.Tensor) -> torch.Tensor:
        """Points of the round over the original axes, still in units of the box: lambda B_r."""
        effective = points @ self.basis
        return effective.clamp(-1, 1) if self.clamp else effective

    def _to_box(self, effective: torch.Tensor) -> torch.Tensor:
        return self.center + self.half_width * effective

    def _moved(self, points: torch.Tensor) -> torch.Tensor:
        return generate(self.generators[0], self.sizes, points)

    def _screened_proposals(self) -> torch.Tensor:
        """Of many candidates, among them the history moved by the generator, those that the surrogate thinks most of."""
        options = {"dtype": self.dtype, "device": self.points.device}
        start = self.points[(torch.rand(MOVED, **options) * self.count).long()]  # (M, n)
        steps = LONGEST_STEP * torch.rand(MOVED, 1, **options)
        moved = start + steps * (self._moved(start) - start)
        fitness = torch.cat([self.fitness[:, None], self.outcomes], 1)  # (C, 1 + S)
        seed = torch.randint(2**62, (), device=self.points.device)
        meaning = self.outcome_weights, self.outcome_by_sign
        return propose(self.points, fitness, self.count, moved, *meaning, seed, self.pop_size)

    def answer(self) -> torch.Tensor:
        """The point to take when the search is over.

        The best score of many that were tried on few examples is in part luck. So with outcomes it is the point of whose
        surroundings the surrogate expects most, evaluated or not. Without, or if some points were given up before all outcomes
        were known or were dropped from a full history, it is the one of those evaluated in full of which the surrogate expects
        most: where scores are noisy, not always the one with the best score. With paper proposals, which have no surrogate, it
        is the best of the round.

        For one run, not vmapped.

        :return: an `(n,)` tensor.
        :raises ValueError: before `init_step`.
        """
        if not int(self.count):
            raise ValueError("answer: expected evaluated points, found none; call init_step first")
        points = self.points[: self.count]
        if self.screened:
            fitness = torch.cat([self.fitness[:, None], self.outcomes], 1)[: self.count]
            all_known = int(self.steps) * self.pop_size <= len(self.points)
            points = answer(
                points, fitness, self.outcome_weights, self.outcome_by_sign, all_known=all_known
            )[None]
        return self._to_box(self._effective(points))[0]

    def _evaluate(self, points: torch.Tensor) -> None:
        fitness = self.evaluate(self._to_box(self._effective(points))).to(
            self.points
        )  # (P,) or (P, 1 + S)
        expected = (
            (self.pop_size, 1 + len(self.outcome_weights))
            if len(self.outcome_weights)
            else (self.pop_size,)
        )
        if fitness.shape != expected:
            what = (
                "a row per point"
                if len(expected) > 1
                else "a number per point (or outcomes= for further columns)"
            )
            raise ValueError(
                f"evaluate: expected fitness {expected}, {what}, found {tuple(fitness.shape)}"
            )
        fitness, outcomes = fitness.view(self.pop_size, -1).split([1, len(self.outcome_weights)], 1)
        history = Archive(torch.cat([self.points, self.outcomes], 1), self.fitness, self.count)
        rows, *others = append(history, torch.cat([points, outcomes], 1), fitness[:, 0])
        # Cloned: EvoX's wrapper of hyper-parameters takes no state in which tensors share memory.
        self.points, self.outcomes = rows[:, : self.dim].clone(), rows[:, self.dim :].clone()
        self.fitness, self.count = others
        self.steps = self.steps + 1

    def _uniform(self, rows: int) -> torch.Tensor:
        device = self.half_width.device
        return 2 * torch.rand(rows, self.dim, dtype=self.dtype, device=device) - 1

    def _around(self, point: torch.Tensor, rows: int) -> torch.Tensor:
        noise = torch.randn(rows, self.dim, dtype=self.dtype, device=point.device)
        return (point + FIRST_SPREAD / self.dim**0.5 * noise).clamp(-1, 1)

    def _first_points(self) -> torch.Tensor:
        one_hots = torch.eye(self.dim, dtype=self.dtype, device=self.half_width.device)
        average = one_hots.mean(0, keepdim=True)
        known = [one_hots, average] if self.pop_size > self.dim else [average, one_hots]
        if self.screened:
            return torch.cat([average, self._around(average, self.pop_size - 1)])
        return torch.cat([*known, self._uniform(max(0, self.pop_size - self.dim - 1))])[
            : self.pop_size
        ]

    def _fresh_points(self) -> torch.Tensor:
        average = torch.full(
            (1, self.dim), 1 / self.dim, dtype=self.dtype, device=self.half_width.device
        )
        return torch.cat([average, self._uniform(self.pop_size - 1)])

    def _shift_basis(self, new_round: torch.Tensor) -> None:
        """B_{r+1} = Lambda_top B_r, and a history of the one-hots whose fitness is known."""
        top = self._effective(self.points[: self.dim])  # (n, n)
        replaced = torch.arange(self.dim, device=top.device) < self.count
        self.basis = torch.where(new_round & replaced[:, None], top, self.basis)
        carried = start_next_round(self._history(), self.dim)
        self._remember(
            Archive(
                *map(lambda new, old: torch.where(new_round, new, old), carried, self._history())
            )
        )

    def _train_generators(self, new_round: torch.Tensor) -> None:
        """Train on the history of the round; a new round gets fresh generators instead."""
        device = self.fitness.device
        seed = torch.randint(2**62, (), device=device)
        _, iteration = self.round_and_iteration(self.steps)
        draws = torch.rand(
            self.epochs, len(self.fitness), dtype=self.dtype, device=device
        )  # (E, C)
        settings = torch.stack([self.lr, self.winner_ratio, self.cycle_weight, self.opt_weight])
        adam_steps = torch.where(
            new_round, -1, (iteration - 1) * self.epochs
        )  # -1: there is nothing to learn from yet
        self.generators, self.moments, self.losses = train(
            self.generators,
            self.moments,
            adam_steps,
            self.points,
            self.count,
            draws,
            settings,
            seed,
            self.sizes,
        )
