"""Run one algorithm on one function, and write the best fitness so far.

A file has no header; its columns are `COLUMNS`. Fitness has six digits: what agrees in them counts
as a tie.
"""

import csv
import time
from pathlib import Path
from typing import NamedTuple

import torch
from evox import use_state, vmap
from evox.core import Monitor, Mutable
from evox.workflows import StdWorkflow

from benchmarks.evox_functions.algorithms import algorithms
from benchmarks.evox_functions.functions import make_problem

COLUMNS = ["algorithm", "function", "n", "budget", "seed", "evaluations", "best", "seconds"]


class Case(NamedTuple):
    """What is run."""

    algorithm: str
    function: str
    n: int
    """Dimensions."""
    budget: int
    """Evaluations."""

    @property
    def file_name(self) -> str:
        name = self.algorithm.split(" (")[0].replace(" ", "-")
        return f"{name}_{self.function}_{self.n}_{self.budget}.csv"


class Step(NamedTuple):
    """What all seeds have reached after a step."""

    evaluations: int
    """Of each seed so far."""
    best: list[float]
    """Fitness by seed."""


class BestMonitor(Monitor):
    """Evaluations so far, and the best fitness among them."""

    def __init__(self):
        super().__init__()
        self.best = Mutable(torch.tensor(torch.inf))
        self.evaluations = Mutable(torch.tensor(0))

    def pre_tell(self, fitness):
        self.best = torch.minimum(self.best, fitness.min())
        self.evaluations = self.evaluations + fitness.shape[0]


def curve(case: Case, seeds: int) -> list[Step]:
    """The steps within the budget."""
    torch.manual_seed(0)
    make = algorithms(case.n, case.budget)[case.algorithm]
    workflows = []
    for _ in range(seeds):
        problem = make_problem(case.function, case.n)
        workflows.append(StdWorkflow(make(), problem, BestMonitor()))
    if case.algorithm.startswith("CMA-ES"):  # its state is not in tensors
        return steps_one_by_one(workflows, case.budget)
    return steps_together(workflows, case.budget)


def steps_one_by_one(workflows: list[StdWorkflow], budget: int) -> list[Step]:
    """Step one seed after another."""
    first = workflows[0]
    steps = []
    while int(first.monitor.evaluations) + first.algorithm.pop_size <= budget:
        for workflow in workflows:
            workflow.step()
        best = [float(workflow.monitor.best) for workflow in workflows]
        steps.append(Step(int(first.monitor.evaluations), best))
    return steps


def steps_together(workflows: list[StdWorkflow], budget: int) -> list[Step]:
    """Step all seeds in one vmap."""
    parameters, buffers = torch.func.stack_module_state(workflows)
    init_step = vmap(use_state(workflows[0].init_step), randomness="different")
    step = vmap(use_state(workflows[0].step), randomness="different")
    state = init_step({**parameters, **buffers})
    steps = []
    while int(state["monitor.evaluations"][0]) <= budget:
        steps.append(Step(int(state["monitor.evaluations"][0]), state["monitor.best"].tolist()))
        if steps[-1].evaluations == budget:
            break
        state = step(state)
    return steps


def run_case(case: Case, folder: Path, seeds: int) -> str:
    """Run one case and write its curves, unless the file is there with as many seeds."""
    path = folder / case.file_name
    if path.exists() and seeds_in(path) >= seeds:
        return f"{path.name} is there"
    torch.set_num_threads(1)
    start = time.perf_counter()
    steps = curve(case, seeds)
    seconds = time.perf_counter() - start
    partial = path.with_suffix(".part")
    with partial.open("w", newline="") as file:
        table = csv.writer(file)
        for step in steps:
            for seed, best in enumerate(step.best):
                table.writerow([*case, seed, step.evaluations, f"{best:.6g}", f"{seconds:.1f}"])
    partial.rename(path)
    return f"{path.name} {seconds:.0f} s"


def seeds_in(path: Path) -> int:
    """The number of seeds of a file."""
    with path.open(newline="") as file:
        return len({row[COLUMNS.index("seed")] for row in csv.reader(file)})
