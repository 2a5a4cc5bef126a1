"""EvoGM for EvoX: merge language-model experts by evolutionary generative optimisation."""

import evox  # noqa: F401  first: importing this package before EvoX would lose the registration of the plugin

from evox_evogm.evogm import EvoGM

__all__ = ["EvoGM"]
