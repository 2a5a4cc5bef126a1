"""What EvoGM is compared with, each an EvoX `Algorithm`. The libraries behind them are the optional extra `baselines`."""

from evox_evogm.baselines.cma_es import CMAES

__all__ = ["CMAES"]
