"""Bridge: `evox.algorithms.EvoGM`.

EvoX makes an attribute of every module here, under the module's name, unless the name is taken. So
this module takes the name for the class. It imports from the submodule, because `evox` is still
being imported.
"""

import evox.algorithms

from evox_evogm.algorithms.evogm import EvoGM

evox.algorithms.EvoGM = EvoGM
evox.algorithms.__all__.append("EvoGM")
