"""What is compared: every method is a line of `METHODS`.

A method minimises over [-1, 1]^n, may leave it, and is cut off when its evaluations are used up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from evox.algorithms import CSO, DE, PSO
from evox.core import Algorithm, Problem

from evox_evogm import EvoGM, GradientSearch, Outcomes, SurrogateEvoGM, SurrogateSettings
from evox_evogm.algorithms.gaussian_process import MATERN32, RBF, Prior
from evox_evogm.algorithms.surrogate_evogm import POP_SIZE
from evox_evogm.baselines import (
    CMAES,
    BayesianOptimization,
    ModelSwarms,
    PSOMerging,
    RandomSearch,
    initial_population,
    known_points,
    start_from,
)
from evox_evogm.problems import LoRAMergeProblem, Racing


@dataclass(frozen=True)
class Method:
    """A search, or a training beside the searches."""

    make: Callable[..., Algorithm] | None
    """`make(n, P)` gives a fresh algorithm; with `outcomes` it is `make(n, P, problem=problem)`.
    None for the training of `trained_lora.py`."""
    group: str = "search"
    """What it is run with: `"search"` or a kind of change."""
    rounds: int = 1
    """With two, the best n points of the first become the axes of the second, which starts anew:
    the published basis shift, for algorithms that have none."""
    pop_size: int | None = None
    """P, if it is not that of the case."""
    budget: int | None = None
    """Evaluations, if they are not those of the case."""
    outcomes: bool = False
    """Whether the algorithm gets the outcome of every example beside the score."""
    gradients: bool = False
    """Whether the problem gives the gradient too, which counts as 3 evaluations."""
    minibatches: int | None = None
    """Of dev questions, with gradients; 1 is all questions, and None what the budget makes of it,
    as in the command."""
    modules: str = "expert"
    """The groups of modules or channels in which an expert has a coefficient of its own. The method
    then searches n g coefficients: it is `make(n g, P, problem=problem)`."""
    stop: bool = False
    """Whether the search ends where its last evaluations have gained little: `stop: auto`."""
    racing: Racing | None = None
    """Whether merges that are clearly behind are pruned; the budget then counts fractions of a full
    evaluation."""


def box(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return -torch.ones(n), torch.ones(n)


def evogm(n: int, pop_size: int, **arguments) -> Algorithm:
    """The published method. Over the axes of later rounds, coefficients may leave the box."""
    return EvoGM(pop_size, *box(n), clamp=False, **arguments)


def surrogate_evogm(
    n: int, pop_size: int, *, problem: Problem | None = None, **arguments
) -> Algorithm:
    """The surrogate-driven search, on the outcomes of a problem if it is given."""
    if problem is None:
        return SurrogateEvoGM(pop_size, *box(n), **arguments)
    outcomes = Outcomes(*problem.outcomes)
    return SurrogateEvoGM(
        pop_size, *box(n), outcomes=outcomes, blocks=problem.n_experts, **arguments
    )


def from_average_base_and_experts(
    n: int, pop_size: int, *, problem: Problem | None = None
) -> Algorithm:
    """The surrogate-driven search after the average, the base and the one-hots."""
    initial_points = known_points(n).roll(1, 0)
    return surrogate_evogm(n, pop_size, problem=problem, initial_points=initial_points)


def with_outcomes(make: Callable[..., Algorithm], group: str = "search", **fields) -> Method:
    """A method of `SurrogateEvoGM` that gets the outcomes, with its small populations."""
    return Method(make, group, **{"pop_size": POP_SIZE, "outcomes": True, **fields})


def design(**settings) -> Method:
    """`SurrogateEvoGM` with other settings of its surrogate."""
    changed = partial(surrogate_evogm, settings=SurrogateSettings(**settings))
    return with_outcomes(changed, "design")


def design_on_scores(**settings) -> Method:
    """The same on scores alone."""
    changed = partial(surrogate_evogm, settings=SurrogateSettings(**settings))
    return Method(changed, "scores", pop_size=POP_SIZE)


def by_modules(modules: str, **settings) -> Method:
    """`SurrogateEvoGM` with a coefficient for every expert and group of modules."""
    changed = partial(surrogate_evogm, settings=SurrogateSettings(**settings))
    return with_outcomes(changed, "granularity", modules=modules)


def normal_scores(fitness: torch.Tensor) -> torch.Tensor:
    """Ranks as places in a normal distribution; equals share theirs.

    :param fitness: an `(N, 1)` tensor, minimised.
    :return: an `(N, 1)` tensor.
    """
    lower = (fitness < fitness.T).sum(1, keepdim=True)
    equal = (fitness == fitness.T).sum(1, keepdim=True)
    below = lower + equal / 2
    return torch.special.ndtri(below.double() / len(fitness)).neg()


def from_known_points(cls: type[Algorithm], n: int, pop_size: int) -> Algorithm:
    """An algorithm of EvoX that starts from base, experts and average."""
    return start_from(cls(pop_size, *box(n)), initial_population(pop_size, *box(n)))


def cma_es(n: int, pop_size: int | None) -> Algorithm:
    """mergekit-evolve's: from the average, sigma 1/6, without bounds."""
    return CMAES(torch.full((n,), 1 / n), 1 / 6, pop_size)


def bayesian_optimization(n: int, pop_size: int, **arguments) -> Algorithm:
    return BayesianOptimization(pop_size, *box(n), **arguments)


def gradient_search(n: int, pop_size: int, *, problem: LoRAMergeProblem, **arguments) -> Algorithm:
    """The search along gradients from the average, which is 1/n over the axes of the box."""
    experts = problem.n_experts
    return GradientSearch(
        torch.full((n,), 1 / experts),
        pop_size,
        outcomes=Outcomes(*problem.outcomes),
        blocks=experts,
        **arguments,
    )


def by_gradients(modules: str = "module", group: str = "gradients", **fields) -> Method:
    """A method of `GradientSearch` that evaluates one point a step."""
    arguments = fields.pop("arguments", {})
    return Method(
        partial(gradient_search, **arguments),
        group,
        pop_size=1,
        outcomes=True,
        gradients=True,
        modules=modules,
        **fields,
    )


SEARCHES: dict[str, Method] = {
    "SurrogateEvoGM": with_outcomes(surrogate_evogm),
    "EvoGM": Method(evogm),
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
    "BO qLogEI": Method(partial(bayesian_optimization, acquisition="qlogei")),
    "BO qLogEI own start": Method(
        partial(bayesian_optimization, acquisition="qlogei", start="own")
    ),
    "BO TuRBO": Method(partial(bayesian_optimization, acquisition="turbo")),
    "BO TuRBO own start": Method(partial(bayesian_optimization, acquisition="turbo", start="own")),
    "LoRA on dev": Method(None, pop_size=1),
}

# The paper's ablations (tables 5 and 11).
ABLATIONS: dict[str, Method] = {
    "single generator": Method(partial(evogm, dual=False), "ablations"),
    "one round": Method(partial(evogm, n_rounds=1, n_iters=7), "ablations"),
    "no cycle loss": Method(partial(evogm, cycle_weight=0.0), "ablations"),
    "PSO two rounds": Method(partial(from_known_points, PSO), "ablations", rounds=2),
}

# Parts of SurrogateEvoGM: the surrogate on scores alone, and so on.
PARTS: dict[str, Method] = {
    "SurrogateEvoGM scores": Method(surrogate_evogm, "parts", pop_size=POP_SIZE),
    "racing": with_outcomes(surrogate_evogm, "parts", racing=Racing()),
}

# What the surrogate is made of: one thing changed at a time.
DESIGN: dict[str, Method] = {
    "batches of 2": with_outcomes(surrogate_evogm, "design", pop_size=2),
    "batches of 5": with_outcomes(surrogate_evogm, "design", pop_size=5),
    "batches of 10": with_outcomes(surrogate_evogm, "design", pop_size=10),
    "batches of 20": with_outcomes(surrogate_evogm, "design", pop_size=20),
    "initial points anywhere": design(initial_std=1.6),
    "no added noise": design(noise_std=1e-6, recommend_noise_std=1e-6),
    "one noise std, wider perturbations": design(recommend_noise_std=0.3, perturbation_std=0.1),
    "margins not squashed": design(squash=1e6),
    "never exploits": design(exploit_every=0),
    "no Gaussian candidates": design(gaussian_candidates=0),
    "no crossover candidates": design(crossover_candidates=0),
    "a Cholesky of 64 rows": design(max_points=64, max_fit_points=64),
    "RBF kernel": design(kernel=RBF),
    "Matern 1.5": design(kernel=MATERN32),
    "length scales of the prior": design(prior=Prior(length_scale_log_variance=1e-6)),
    # The prior of Hvarfner et al., which is for [0, 1]: the box is twice as wide.
    "long length scales": design(
        prior=Prior(length_scale_median=2 * math.exp(math.sqrt(2)), length_scale_log_variance=3.0)
    ),
    "two candidate rounds": design(candidate_rounds=2),
    "six candidate rounds": design(candidate_rounds=6),
    "all the evidence": design(prior=Prior(evidence=1e9)),
    "beta 0": design(beta=0.0),
    "beta 3": design(beta=3.0),
    "known initial points": with_outcomes(from_average_base_and_experts, "design"),
}

# The same without outcomes, beside "SurrogateEvoGM scores".
ON_SCORES: dict[str, Method] = {
    "score beta 0.3": design_on_scores(score_beta=0.3),
    "scores as ranks": design_on_scores(score_transform=normal_scores),
}

# The paper's sweeps (table 12): one setting of the release changed at a time.
# Every search makes R (T + 1) P evaluations.
SWEEPS: dict[str, Method] = {
    "P 10": Method(evogm, "sweeps", pop_size=10, budget=80),
    "P 30": Method(evogm, "sweeps", pop_size=30, budget=240),
    "T 5": Method(partial(evogm, n_iters=5), "sweeps", budget=240),
    "T 8": Method(partial(evogm, n_iters=8), "sweeps", budget=360),
    "400 epochs": Method(partial(evogm, epochs=400), "sweeps"),
    "600 epochs": Method(partial(evogm, epochs=600), "sweeps"),
    "lr 1e-3": Method(partial(evogm, lr=1e-3), "sweeps"),
    "lr 5e-3": Method(partial(evogm, lr=5e-3), "sweeps"),
    "R 3": Method(partial(evogm, n_rounds=3), "sweeps", budget=240),
    "R 5": Method(partial(evogm, n_rounds=5), "sweeps", budget=400),
    "R 3, T 5, 400 epochs, lr 1e-3": Method(
        partial(evogm, n_rounds=3, n_iters=5, epochs=400, lr=1e-3), "sweeps", budget=360
    ),
}

# The stopping rule of the command.
STOPPING: dict[str, Method] = {
    "SurrogateEvoGM stop auto": with_outcomes(surrogate_evogm, "stopping", stop=True),
    "GradientSearch stop auto": by_gradients(group="stopping", stop=True),
}

# Coefficients by group of modules, with gradients.
GRADIENTS: dict[str, Method] = {
    "GradientSearch": by_gradients(),
    "GradientSearch 40": by_gradients(budget=40),
    "GradientSearch 15": by_gradients(budget=15),
    "GradientSearch by channel": by_gradients("channel"),
    "GradientSearch by channel 40": by_gradients("channel", budget=40),
    "GradientSearch by channel 15": by_gradients("channel", budget=15),
    "GradientSearch 40 on all questions": by_gradients(budget=40, minibatches=1),
    "GradientSearch 15 on all questions": by_gradients(budget=15, minibatches=1),
    "GradientSearch by channel 40 on all questions": by_gradients(
        "channel", budget=40, minibatches=1
    ),
    "GradientSearch by channel 15 on all questions": by_gradients(
        "channel", budget=15, minibatches=1
    ),
    "GradientSearch on all questions": by_gradients(minibatches=1),
    "GradientSearch by channel on all questions": by_gradients("channel", minibatches=1),
    "GradientSearch by layer": by_gradients("layer"),
    "GradientSearch by expert": by_gradients("expert"),
    "no perturbation": by_gradients(arguments={"perturbation": 0.0}),
    "no shrinkage": by_gradients(arguments={"shrinkage": 0.0}),
}

# Coefficients by group of modules, without gradients.
GRANULARITY: dict[str, Method] = {
    "SurrogateEvoGM by layer": by_modules("layer"),
    "SurrogateEvoGM by layer at once": by_modules("layer", coarse_points_per_block=0),
}

METHODS: dict[str, Method] = (
    SEARCHES | ABLATIONS | PARTS | DESIGN | ON_SCORES | SWEEPS | STOPPING | GRADIENTS | GRANULARITY
)
# Methods that run on the controls.
CONTROLLED = (
    "SurrogateEvoGM",
    "GradientSearch",
    "GradientSearch by channel",
    "EvoGM",
    "CMA-ES",
    "random",
)
GROUPS = tuple(dict.fromkeys(method.group for method in METHODS.values()))
assert not any("/" in name for name in METHODS), "names of methods are names of files"
