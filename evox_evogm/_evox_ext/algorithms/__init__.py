"""Bridge: `evox.algorithms.EvoGM`. Imports from the submodule, because `evox` is still being imported here."""

from evox_evogm.algorithms.evogm import EvoGM

__all__ = ["EvoGM"]
