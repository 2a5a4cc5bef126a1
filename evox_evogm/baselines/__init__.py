"""What EvoGM is compared with, each an EvoX `Algorithm`, and the points that they start from.

Fitness is minimised. CMA-ES and Bayesian optimisation need the optional extra `baselines`.
"""

# EvoX first: it registers the plugin, for which it imports this package.
import evox  # noqa: F401  isort: skip

from evox_evogm.baselines.bayesian_optimization import BayesianOptimization
from evox_evogm.baselines.cma_es import CMAES
from evox_evogm.baselines.known_points import initial_population, known_points, start_from
from evox_evogm.baselines.model_swarms import ModelSwarms
from evox_evogm.baselines.pso_merging import PSOMerging
from evox_evogm.baselines.random_search import RandomSearch

__all__ = [
    "CMAES",
    "BayesianOptimization",
    "ModelSwarms",
    "PSOMerging",
    "RandomSearch",
    "initial_population",
    "known_points",
    "start_from",
]
