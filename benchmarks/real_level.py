"""The real level of `compare.py`: SmolLM2-135M-Instruct with the shipped experts, on their tasks and three unseen ones.

Few examples a task in dev, because two cores take a second for 3,000 tokens; more in test, which is scored once per run.
"""

from contextlib import nullcontext

import yaml
from controls import random_adapters, shuffled_answers

from evox_evogm.command.cli import DEMO
from evox_evogm.command.merge_run import read_task
from evox_evogm.problems import LoRAMergeProblem, Task
from evox_evogm.problems.inference.base_model import SMOLLM2

DEV, TEST = 6, 24  # examples a task
UNSEEN = (
    {"reasoning_gym": "lcm", "options": {"min_numbers": 2, "max_numbers": 2, "max_value": 20}},
    {
        "reasoning_gym": "basic_arithmetic",
        "options": {"min_terms": 2, "max_terms": 2, "max_digits": 1},
    },
    {
        "reasoning_gym": "number_sorting",
        "options": {"min_numbers": 2, "max_numbers": 3, "max_value": 9},
    },
)


def tasks(n: int, split: str) -> list[Task]:
    """The tasks of the demo and the unseen ones."""
    entries = [*yaml.safe_load((DEMO / "demo.yaml").read_text())["tasks"], *UNSEEN]
    pairs = [read_task({**entry, "dev": DEV, "test": TEST}, DEMO) for entry in entries]
    return [dev if split == "dev" else test for dev, test in pairs]


def make_problem(
    n: int = 8, *, control: str = "", regmean: bool = False, **settings
) -> LoRAMergeProblem:
    """Merges of the first n shipped experts, on dev; `control`, `regmean` and settings as in `small_level.make_problem`."""
    folders = sorted(path.parent for path in (DEMO / "experts").glob("*/adapter_config.json"))[:n]
    asked = [shuffled_answers(task) if control == "shuffled" else task for task in tasks(n, "dev")]
    if regmean:
        settings["regmean"] = {
            path.name: [task for task in asked if task.name == path.name] for path in folders
        }
    settings = {"mode": "unmerged"} | settings  # in bfloat16 where the processor computes in it
    with random_adapters(folders) if control == "random" else nullcontext(folders) as experts:
        return LoRAMergeProblem(SMOLLM2, experts, asked, **settings)
