"""Bridge: `evox.problems.LoRAMergeProblem`."""

from evox_evogm.problems.lora_merge import LoRAMergeProblem

__all__ = ["LoRAMergeProblem"]
