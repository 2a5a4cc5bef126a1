"""Bridge: `evox.problems.LoRAMergeProblem`; see `EvoGM.py` in `algorithms`."""

import evox.problems

from evox_evogm.problems.lora_merge import LoRAMergeProblem

evox.problems.LoRAMergeProblem = LoRAMergeProblem
evox.problems.__all__.append("LoRAMergeProblem")
