"""What `compare.py` compares: every method, a line of `METHODS`.

A method minimises over [-1, 1]^n, may leave it, and is cut off when its evaluations are spent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from evox.algorithms import CSO, DE, PSO
from evox.core import Algorithm

from evox_evogm import EvoGM
from evox_evogm.algorithms.evogm import SCREENED_POP_SIZE
from evox_evogm.algorithms.generators import generate, initial_parameters
from evox_evogm.algorithms.surrogate import Outcomes
from evox_evogm.baselines import (
    CMAES,
    BayesianOptimization,
    ModelSwarms,
    PSOMerging,
    RandomSearch,
    first_population,
    known_points,
    start_from,
)
from evox_evogm.problems import Racing


@dataclass(frozen=True)
class Method:
    """A search. `make(n, P)` gives a fresh algorithm; with two `rounds` the best n points of the first become the axes of the
    second, which starts anew: the published basis shift for algorithms that have none."""

    make: Callable[[int, int], Algorithm]
    group: str = "search"
    rounds: int = 1
    settings: dict = field(default_factory=dict)
    """Of the case where they differ: `pop_size`, `budget`."""
    outcomes: bool = False
    """Whether the algorithm also takes what the problem says of every example."""
    racing: Racing | None = None
    """Whether hopeless merges are given up; the budget then counts examples asked, as shares of a full evaluation."""
    constants: dict = field(default_factory=dict)
    """Of `evogm.py`, `surrogate.py` and `gaussian_process.py` where they differ."""


LONG_LENGTH_SCALES = {"LENGTH": 2 * math.exp(math.sqrt(2)), "LENGTH_VARIANCE": 3.0}
SCREENED = {"pop_size": SCREENED_POP_SIZE}


def box(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return -torch.ones(n), torch.ones(n)


def evogm(n: int, pop_size: int, **settings) -> Algorithm:
    return EvoGM(pop_size, *box(n), proposal="paper", clamp=False, **settings)


def screened(
    n: int, pop_size: int, *, problem=None, cls: type[EvoGM] = EvoGM, **settings
) -> Algorithm:
    """EvoGM with its surrogate; with a problem, on the outcomes of its examples."""
    outcomes = None if problem is None else Outcomes(*problem.outcomes)
    return cls(pop_size, *box(n), clamp=False, outcomes=outcomes, **settings)


class WithoutGenerators(EvoGM):
    """The surrogate alone: nothing is trained, and no candidate is moved by a generator."""

    def _train_generators(self, new_round: torch.Tensor) -> None:
        pass

    def _moved(self, points: torch.Tensor) -> torch.Tensor:
        return points


class Ensemble(EvoGM):
    """Four pairs of generators that began differently; each moves a quarter of the candidates."""

    def init_step(self) -> None:
        super().init_step()
        draw = partial(
            initial_parameters, self.sizes, len(self.generators), self.dtype, self.generators.device
        )
        self.pairs = [(self.generators, self.moments)] + [
            (draw(), torch.zeros_like(self.moments)) for _ in range(3)
        ]

    def _train_generators(self, new_round: torch.Tensor) -> None:
        trained = []
        for generators, moments in self.pairs:
            self.generators, self.moments = generators, moments
            super()._train_generators(new_round)
            trained.append((self.generators, self.moments))
        self.pairs = trained

    def _moved(self, points: torch.Tensor) -> torch.Tensor:
        parts = points.chunk(len(self.pairs))
        return torch.cat(
            [
                generate(pair[0], self.sizes, part)
                for (pair, _), part in zip(self.pairs, parts, strict=True)
            ]
        )


class FromKnownPoints(EvoGM):
    """First the average, the base and the one-hots, P of them in every step, then proposals."""

    def _first_points(self) -> torch.Tensor:
        return self._screened_proposals()

    def _screened_proposals(self) -> torch.Tensor:
        done = int(self.steps) * self.pop_size
        known = known_points(self.dim, self.dtype, self.points.device).roll(1, 0)[
            done : done + self.pop_size
        ]
        if len(known) == self.pop_size:
            return known
        proposed = super()._screened_proposals() if done else self._around(known[0], self.pop_size)
        return torch.cat([known, proposed])[: self.pop_size]


def design(**constants: float | Callable) -> Method:
    """EvoGM with other constants, wherever they are."""
    return Method(screened, "design", settings=SCREENED, outcomes=True, constants=constants)


def rbf(distance: torch.Tensor) -> torch.Tensor:
    """The Gaussian correlation, which is its own `matern52_slope`."""
    return torch.exp(-distance.square() / 2)


def matern_3_2(distance: torch.Tensor) -> torch.Tensor:
    return (1 + math.sqrt(3) * distance) * torch.exp(-math.sqrt(3) * distance)


def steepness_3_2(distance: torch.Tensor) -> torch.Tensor:
    return 3 * torch.exp(-math.sqrt(3) * distance)


def normal_scores(fitness: torch.Tensor) -> torch.Tensor:
    """Fitness `(N, 1)` by its ranks alone, equals sharing theirs: their places in a normal distribution."""
    below = (fitness < fitness.T).sum(1, keepdim=True) + (fitness == fitness.T).sum(
        1, keepdim=True
    ) / 2
    return torch.special.ndtri(below.double() / len(fitness)).neg()


def from_known_points(cls: type[Algorithm], n: int, pop_size: int) -> Algorithm:
    return start_from(cls(pop_size, *box(n)), first_population(pop_size, *box(n)))


def cma_es(n: int, pop_size: int | None) -> Algorithm:
    """mergekit-evolve's: from the average, sigma 1/6, without bounds."""
    return CMAES(torch.full((n,), 1 / n), 1 / 6, pop_size)


METHODS: dict[str, Method] = {
    "EvoGM": Method(screened, settings=SCREENED, outcomes=True),
    "EvoGM paper": Method(evogm),
    "random": Method(lambda n, p: RandomSearch(p, *box(n))),
    "CMA-ES": Method(lambda n, p: cma_es(n, None)),
    "CMA-ES P20": Method(cma_es),
    "PSO-Merging": Method(lambda n, p: PSOMerging(p, *box(n))),
    "PSO-Merging known": Method(lambda n, p: PSOMerging(p, *box(n), start="known")),
    "Model Swarms": Method(lambda n, p: ModelSwarms(p, *box(n))),
    "Model Swarms known": Method(lambda n, p: ModelSwarms(p, *box(n), start="known")),
    "PSO": Method(partial(from_known_points, PSO)),
    "PSO own start": Method(lambda n, p: PSO(p, *box(n))),
    "CSO": Method(partial(from_known_points, CSO)),
    "CSO own start": Method(lambda n, p: CSO(p, *box(n))),
    "DE": Method(partial(from_known_points, DE)),
    "DE own start": Method(lambda n, p: DE(p, *box(n))),
    "BO qLogEI": Method(lambda n, p: BayesianOptimization(p, *box(n), acquisition="qlogei")),
    "BO qLogEI own start": Method(
        lambda n, p: BayesianOptimization(p, *box(n), acquisition="qlogei", start="own")
    ),
    "BO TuRBO": Method(lambda n, p: BayesianOptimization(p, *box(n), acquisition="turbo")),
    "BO TuRBO own start": Method(
        lambda n, p: BayesianOptimization(p, *box(n), acquisition="turbo", start="own")
    ),
    # The paper's ablations (tables 5 and 11).
    "single generator": Method(partial(evogm, dual=False), "ablations"),
    "one round": Method(partial(evogm, n_rounds=1, n_iters=7), "ablations"),
    "no cycle loss": Method(partial(evogm, cycle_weight=0.0), "ablations"),
    "PSO two rounds": Method(partial(from_known_points, PSO), "ablations", rounds=2),
    # Parts of EvoGM beyond the paper: the surrogate on scores alone, and so on.
    "EvoGM scores": Method(screened, "parts", settings=SCREENED),
    "no generators": Method(
        partial(screened, cls=WithoutGenerators), "parts", settings=SCREENED, outcomes=True
    ),
    "no cycle, screened": Method(
        partial(screened, cycle_weight=0.0), "parts", settings=SCREENED, outcomes=True
    ),
    "racing": Method(screened, "parts", settings=SCREENED, outcomes=True, racing=Racing()),
    "racing, no generators": Method(
        partial(screened, cls=WithoutGenerators),
        "parts",
        settings=SCREENED,
        outcomes=True,
        racing=Racing(),
    ),
    # What the surrogate is made of: one thing changed at a time.
    "batches of 2": Method(screened, "design", settings={"pop_size": 2}, outcomes=True),
    "batches of 5": Method(screened, "design", settings={"pop_size": 5}, outcomes=True),
    "batches of 10": Method(screened, "design", settings={"pop_size": 10}, outcomes=True),
    "batches of 20": Method(screened, "design", settings={"pop_size": 20}, outcomes=True),
    "first points anywhere": design(FIRST_SPREAD=1.6),
    "no blur": design(BLUR=1e-6, ANSWER_BLUR=1e-6),
    "one blur, wider surroundings": design(ANSWER_BLUR=0.3, RADIUS=0.1),
    "margins not bent": design(SQUASH=1e6),
    "no pick by surroundings": design(ANSWER_EVERY=math.nan),
    "no noise around good points": design(AROUND=0),
    "no points between two": design(BETWEEN=0),
    "a Cholesky of 64 rows": design(ROWS=64, FIT_ROWS=64),
    "RBF kernel": design(matern52=rbf, matern52_slope=rbf),
    "Matern 1.5": design(matern52=matern_3_2, matern52_slope=steepness_3_2),
    "length scales of the prior": design(LENGTH_VARIANCE=1e-6),
    # The prior of Hvarfner et al., which is for [0, 1]: the box is twice as wide.
    "long length scales": design(**LONG_LENGTH_SCALES),
    "two pools": design(POOLS=2),
    "six pools": design(POOLS=6),
    "all the evidence": design(EVIDENCE=1e9),
    "no optimism": design(OPTIMISM=0.0),
    "more optimism": design(OPTIMISM=3.0),
    "more moved by generators": design(MOVED=3000),
    "four pairs of generators": Method(
        partial(screened, cls=Ensemble), "design", settings=SCREENED, outcomes=True
    ),
    "200 epochs": Method(partial(screened, epochs=200), "design", settings=SCREENED, outcomes=True),
    "first points known": Method(
        partial(screened, cls=FromKnownPoints), "design", settings=SCREENED, outcomes=True
    ),
    # The same without outcomes, beside "EvoGM scores".
    "little optimism on scores": Method(
        screened, "scores", settings=SCREENED, constants={"SCORE_OPTIMISM": 0.3}
    ),
    "scores as ranks": Method(
        screened, "scores", settings=SCREENED, constants={"winsorize": normal_scores}
    ),
    # The paper's sweeps (table 12): one setting of the release changed at a time. Every search makes R (T + 1) P evaluations.
    "P 10": Method(evogm, "sweeps", settings={"pop_size": 10, "budget": 80}),
    "P 30": Method(evogm, "sweeps", settings={"pop_size": 30, "budget": 240}),
    "T 5": Method(partial(evogm, n_iters=5), "sweeps", settings={"budget": 240}),
    "T 8": Method(partial(evogm, n_iters=8), "sweeps", settings={"budget": 360}),
    "400 epochs": Method(partial(evogm, epochs=400), "sweeps"),
    "600 epochs": Method(partial(evogm, epochs=600), "sweeps"),
    "lr 1e-3": Method(partial(evogm, lr=1e-3), "sweeps"),
    "lr 5e-3": Method(partial(evogm, lr=5e-3), "sweeps"),
    "R 3": Method(partial(evogm, n_rounds=3), "sweeps", settings={"budget": 240}),
    "R 5": Method(partial(evogm, n_rounds=5), "sweeps", settings={"budget": 400}),
    "R 3, T 5, 400 epochs, lr 1e-3": Method(
        partial(evogm, n_rounds=3, n_iters=5, epochs=400, lr=1e-3),
        "sweeps",
        settings={"budget": 360},
    ),
}
CONTROLLED = ("EvoGM", "EvoGM paper", "CMA-ES", "random")  # methods that run on the controls
GROUPS = tuple(dict.fromkeys(method.group for method in METHODS.values()))
assert not any("/" in name for name in METHODS), "names of methods are names of files"
