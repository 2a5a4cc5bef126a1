"""The suite smollm2: SmolLM2-135M-Instruct with the shipped experts.

They are scored on their own tasks and three that no expert has seen. Dev has few examples a task,
because two cores take a second for 3,000 tokens. Test has more: it is scored once per run.
"""

from contextlib import nullcontext

import yaml

from benchmarks.suites.anchors import regmean_setting
from benchmarks.suites.controls import random_adapters, shuffled_answers
from evox_evogm.command.cli import DEMO
from evox_evogm.command.tasks import read_task
from evox_evogm.problems import LoRAMergeProblem, Task
from evox_evogm.problems.inference.base_model import SMOLLM2

DEV, TEST = 6, 24  # examples a task
MORE_TEST = 100  # with a chosen number of dev examples, so that merges can be told apart
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


def tasks(n: int, split: str, draw: None = None, dev_examples: int | None = None) -> list[Task]:
    """The tasks of the demo and the unseen ones, the same for any number of experts.

    :param n: experts.
    :param split: `"dev"` or `"test"`.
    :param draw: there is one set of questions.
    :param dev_examples: dev questions a task, if not `DEV`. Those of a smaller number are the
        first of a larger one. With it there are `MORE_TEST` test questions a task.
    """
    sizes = {"dev": DEV, "test": TEST}
    if dev_examples:
        sizes = {"dev": dev_examples, "test": MORE_TEST}
    entries = [*yaml.safe_load((DEMO / "demo.yaml").read_text())["tasks"], *UNSEEN]
    chosen = []
    for entry in entries:
        dev, test = read_task({**entry, **sizes}, DEMO)
        chosen.append(dev if split == "dev" else test)
    return chosen


def task_of_expert(name: str) -> str:
    """Experts have the names of their tasks."""
    return name


def make_problem(
    n: int = 8,
    *,
    control: str = "",
    draw: None = None,
    regmean: str = "",
    limit: bool = False,
    dev_examples: int | None = None,
    **settings,
) -> LoRAMergeProblem:
    """Merges of the first n shipped experts, on dev.

    :param n: experts, in the order of their names.
    :param control: `"random"` adapters, `"shuffled"` answers, or `""`; see `controls.py`.
    :param draw: there is one set of questions.
    :param regmean: search around the RegMean merge, see `anchors.py`.
    :param limit: search on the test questions themselves. What it finds is beyond a search that
        has other questions.
    :param dev_examples: dev questions a task, if not `DEV`.
    :param settings: of `LoRAMergeProblem`; the weights are bfloat16 where the processor can.
    """
    folders = sorted(path.parent for path in (DEMO / "experts").glob("*/adapter_config.json"))[:n]
    dev = tasks(n, "dev", dev_examples=dev_examples)
    if control == "shuffled":
        dev = [shuffled_answers(task) for task in dev]
    settings |= regmean_setting(regmean, folders, dev, task_of_expert)
    if limit:
        dev = tasks(n, "test", dev_examples=dev_examples)
    settings = {"mode": "unmerged"} | settings
    with random_adapters(folders) if control == "random" else nullcontext(folders) as experts:
        return LoRAMergeProblem(SMOLLM2, experts, dev, **settings)
