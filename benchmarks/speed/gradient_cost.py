"""What does an evaluation with its gradient cost, in evaluations without?

One merge on the dev questions of a suite, with a coefficient for each expert and module or
channel: without its gradient in both modes, and with it. The ways take turns in one process, and
the times are processor times of one thread. Least of the repeats.

    python -m benchmarks.speed.gradient_cost [--suite synthetic] [--groups channel] [--repeats 7]
"""

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks.suites.suite import SUITES
from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.inference.base_model import ready_to_score


def ways_to_evaluate(problem: LoRAMergeProblem) -> dict[str, Callable[[], object]]:
    """What is timed, by its name."""
    scorer, tasks = problem.scorer, problem.tasks
    pop = problem.groups.expand(torch.full((1, problem.n_experts), 1 / problem.n_experts))

    def score_in(mode: str) -> None:
        scorer.modes = dict.fromkeys([task.name for task in tasks], mode)
        scorer.score(pop, tasks)

    return {
        "unmerged": lambda: score_in("unmerged"),
        "merged": lambda: score_in("merged"),
        "with gradient": lambda: scorer.differentiate(pop, tasks),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=list(SUITES), default="synthetic")
    parser.add_argument("--groups", choices=("module", "channel"), default="module")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    suite = SUITES[arguments.suite]
    problem = suite.make_problem(suite.n, groups=arguments.groups, max_memory=8 * 2**30)
    seconds: dict[str, list[float]] = {}
    with ready_to_score(problem.language_model.model):
        ways = ways_to_evaluate(problem)
        for _ in range(1 + arguments.repeats):
            for name, evaluate in ways.items():
                start = time.process_time()
                evaluate()
                seconds.setdefault(name, []).append(time.process_time() - start)
    least = {name: min(times[1:]) for name, times in seconds.items()}  # the first warms up
    gradient = least["with gradient"]
    dtype = problem.language_model.model.dtype
    print(f"{arguments.suite}, {problem.n_coefficients} coefficients, {dtype}")
    for name, own in least.items():
        print(f"{name:14} {own:8.3f} s   a gradient costs {gradient / own:.2f} of it")


if __name__ == "__main__":
    main()
