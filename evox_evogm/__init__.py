"""EvoGM for EvoX: merge language-model experts by evolutionary generative optimisation."""

import evox  # noqa: F401  first: importing this package before EvoX would lose the registration of the plugin

from evox_evogm.algorithms.evogm import EvoGM
from evox_evogm.algorithms.surrogate import Outcomes
from evox_evogm.resume.resumable_search import ResumableSearch

__all__ = ["EvoGM", "Outcomes", "ResumableSearch"]
