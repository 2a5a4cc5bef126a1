"""What EvoGM is compared with, each an EvoX `Algorithm`, and the points that they start from.

Fitness is minimised. The libraries behind some of them are the optional extras `baselines` (CMA-ES) and `benchmarks` (all).
"""

from evox_evogm.baselines.bayesian_optimization import BayesianOptimization
from evox_evogm.baselines.cma_es import CMAES
from evox_evogm.baselines.known_points import first_population, known_points, start_from
from evox_evogm.baselines.model_swarms import ModelSwarms
from evox_evogm.baselines.pso_merging import PSOMerging
from evox_evogm.baselines.random_search import RandomSearch

__all__ = [
    "CMAES",
    "BayesianOptimization",
    "ModelSwarms",
    "PSOMerging",
    "RandomSearch",
    "first_population",
    "known_points",
    "start_from",
]
