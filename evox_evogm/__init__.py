"""EvoGM for EvoX: merge language-model experts by evolutionary generative optimisation."""

# EvoX first: importing this package before it would lose the registration of the plugin.
import evox  # noqa: F401  isort: skip

from evox_evogm.algorithms.evogm import EvoGM
from evox_evogm.algorithms.gradient_search import GradientSearch
from evox_evogm.algorithms.surrogate import Outcomes, SurrogateSettings
from evox_evogm.algorithms.surrogate_evogm import SurrogateEvoGM
from evox_evogm.resume.resumable_search import ResumableSearch

__all__ = [
    "EvoGM",
    "GradientSearch",
    "Outcomes",
    "ResumableSearch",
    "SurrogateEvoGM",
    "SurrogateSettings",
]
