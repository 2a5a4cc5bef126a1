"""The suites by name, and what a script needs to know about each."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.suites import smollm2, synthetic
from evox_evogm.problems import LoRAMergeProblem, Task


@dataclass(frozen=True)
class Suite:
    """Experts of one base model, tasks to score merges on, and the defaults of a comparison."""

    make_problem: Callable[..., LoRAMergeProblem]
    """`make_problem(n, **settings)` merges the first n experts and scores them on dev."""
    tasks: Callable[..., list[Task]]
    """`tasks(n, split, draw, dev_examples)` gives the tasks of one split."""
    task_of_expert: Callable[[str], str]
    """The name of the task that an expert was trained on."""
    n: int
    """Experts by default."""
    max_n: int
    """Experts that exist."""
    seeds: int
    """Seeds by default."""
    processes: int
    """Cases at a time by default."""
    threads: int
    """Threads of each case by default."""
    can_resample: bool
    """Whether a seed can draw its own dev and test sets."""
    resumable: bool
    """Whether a case takes so long that its evaluations go to a journal."""


SUITES = {
    "synthetic": Suite(
        synthetic.make_problem,
        synthetic.tasks,
        synthetic.task_of_expert,
        n=10,
        max_n=synthetic.N_EXPERTS,
        seeds=20,
        processes=2,
        threads=1,
        can_resample=True,
        resumable=False,
    ),
    "smollm2": Suite(
        smollm2.make_problem,
        smollm2.tasks,
        smollm2.task_of_expert,
        n=8,
        max_n=8,
        seeds=3,
        processes=1,
        threads=2,
        can_resample=False,
        resumable=True,
    ),
}
