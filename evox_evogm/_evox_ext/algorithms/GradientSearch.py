"""Bridge: `evox.algorithms.GradientSearch`; see `EvoGM.py` beside it."""

import evox.algorithms

from evox_evogm.algorithms.gradient_search import GradientSearch

evox.algorithms.GradientSearch = GradientSearch
evox.algorithms.__all__.append("GradientSearch")
