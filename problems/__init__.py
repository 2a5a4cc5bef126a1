"""EvoX problems that merge and score language models."""

from evox_evogm.problems.distributed import DistributedProblem
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.racing import Racing
from evox_evogm.problems.tasks.readers import read_json_lines, read_reasoning_gym, read_swarm_eval
from evox_evogm.problems.tasks.task import Example, Task

__all__ = [
    "DistributedProblem",
    "Example",
    "LoRAMergeProblem",
    "Racing",
    "Task",
    "read_json_lines",
    "read_reasoning_gym",
    "read_swarm_eval",
]
