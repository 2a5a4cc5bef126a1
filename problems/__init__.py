"""EvoX problems that merge and score language models."""

# EvoX first: it registers the plugin, for which it imports this package.
import evox  # noqa: F401  isort: skip

from evox_evogm.problems.adapters.find_adapters import find_adapters
from evox_evogm.problems.distributed import DistributedProblem
from evox_evogm.problems.functions.fitness_task import fitness_tasks, for_population
from evox_evogm.problems.functions.run_code import run_python
from evox_evogm.problems.images.image_task import image_task
from evox_evogm.problems.images.read_images import read_images
from evox_evogm.problems.inference.base_model import smollm2_folder
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.racing import Racing
from evox_evogm.problems.scalarization import Constraint, Objective
from evox_evogm.problems.tasks.harness.reader import read_lm_eval
from evox_evogm.problems.tasks.readers import read_json_lines, read_reasoning_gym, read_swarm_eval
from evox_evogm.problems.tasks.task import Example, Task

__all__ = [
    "Constraint",
    "DistributedProblem",
    "Example",
    "LoRAMergeProblem",
    "Objective",
    "Racing",
    "Task",
    "find_adapters",
    "fitness_tasks",
    "for_population",
    "image_task",
    "read_images",
    "read_json_lines",
    "read_lm_eval",
    "read_reasoning_gym",
    "read_swarm_eval",
    "run_python",
    "smollm2_folder",
]
