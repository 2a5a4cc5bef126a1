"""EvoGM for EvoX: merge language-model experts by evolutionary generative optimisation."""

import evox  # noqa: F401  first: importing this package before EvoX would lose the registration of the plugin

from evox_evogm.evogm import EvoGM
from evox_evogm.resume import ResumableSearch
from evox_evogm.surrogate import Outcomes

__all__ = ["EvoGM", "Outcomes", "ResumableSearch"]
