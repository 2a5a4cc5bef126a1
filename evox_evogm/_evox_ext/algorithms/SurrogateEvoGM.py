"""Bridge: `evox.algorithms.SurrogateEvoGM`; see `EvoGM.py` beside it."""

import evox.algorithms

from evox_evogm.algorithms.surrogate_evogm import SurrogateEvoGM

evox.algorithms.SurrogateEvoGM = SurrogateEvoGM
evox.algorithms.__all__.append("SurrogateEvoGM")
