"""Searches that test_distributed.py runs in its own process and, by torchrun, on several ranks.

torchrun --nproc-per-node 2 search_on_ranks.py OUT.json EXPERTS_FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from builders import build_model, build_tokenizer
from evox.problems.numerical import Ackley
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM, SurrogateEvoGM
from evox_evogm.problems import DistributedProblem, Example, LoRAMergeProblem, Task

TASK = Task(
    "add", "1", "gold_log_probability", (Example("0", "1+1=", "2"), Example("1", "2+5=", "7"))
)


class DrawingAckley(Ackley):
    """Draws as many random numbers as it has rows: the ranks must keep the same random state."""

    def evaluate(self, pop):
        torch.rand(len(pop))
        return super().evaluate(pop)


class Failing(Ackley):
    """Cannot evaluate points whose first coordinate is over 3: the first one-hot alone."""

    def evaluate(self, pop):
        if (pop[:, 0] > 3).any():
            raise ValueError("the first coordinate is too large")
        return super().evaluate(pop)


class Dying(Ackley):
    """Its process is killed in the third evaluation on rank 1."""

    calls = 0

    def evaluate(self, pop):
        self.calls += 1
        if self.calls == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluate(pop)


def make_evogm(pop_size, bounds):
    return EvoGM(pop_size, -bounds, bounds, n_iters=1, epochs=10, hidden_dims=(8,))


def make_surrogate_evogm(pop_size, bounds):
    return SurrogateEvoGM(pop_size, -bounds, bounds)


def search(problem, pop_size, n=3, steps=4, make=make_evogm, **workflow_settings):
    """The fitness history and the last points of a search with a seed."""
    torch.manual_seed(4)
    algorithm = make(pop_size, torch.full((n,), 4.0))
    monitor = EvalMonitor(full_sol_history=True)
    workflow = StdWorkflow(algorithm, problem, monitor, **workflow_settings)
    workflow.init_step()
    for _ in range(steps):
        workflow.step()
    return {
        "fitness": torch.stack(monitor.get_fitness_history()).tolist(),
        "points": torch.stack(monitor.get_solution_history()).tolist(),
    }


def merge_problem(experts):
    folders = sorted(Path(experts).iterdir())
    # One candidate after another, so that the arithmetic does not depend on the size of a share.
    settings = {"candidates_at_once": 1, "mode": "unmerged"}
    return LoRAMergeProblem(build_model(), folders, [TASK], tokenizer=build_tokenizer(), **settings)


def merge_problem_with_failures(experts):
    """Merges with a negative first coefficient fail."""
    problem = merge_problem(experts)
    score = problem.scorer.score

    def score_some(pop, tasks):
        if (pop[:, 0] < 0).any():
            raise RuntimeError("the first coefficient is negative")
        return score(pop, tasks)

    problem.scorer.score = score_some
    return problem


def histories(experts, spread=lambda problem: problem, **workflow_settings):
    """A search per case.

    7 points that 2 and 3 ranks do not divide, fewer points than 3 ranks, the other algorithm, and
    merges.
    """
    merges = spread(merge_problem(experts))
    return {
        "seven": search(spread(Ackley()), 7),
        "two": search(spread(Ackley()), 2),
        "surrogate": search(spread(Ackley()), 5, make=make_surrogate_evogm),
        "merges": search(merges, 5, n=2, opt_direction="max", **workflow_settings),
    }


def message(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def other_seed_on_rank_1():
    torch.manual_seed(dist.get_rank())
    DistributedProblem(Ackley()).evaluate(torch.rand(4, 3))


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    out = f"{sys.argv[1]}.{dist.get_rank()}"
    if sys.argv[2] == "die":
        said = message(lambda: search(DistributedProblem(Dying(), timeout=10), 7))
        Path(out).write_text(json.dumps(said))
        sys.exit(said)
    results = histories(sys.argv[2], DistributedProblem)
    results["drawing"] = search(DistributedProblem(DrawingAckley()), 7)
    results["plain workflow"] = search(Ackley(), 6, enable_distributed=True)
    results["failing"] = message(lambda: search(DistributedProblem(Failing()), 7))
    if dist.get_world_size() > 1:
        results["other seed"] = message(other_seed_on_rank_1)
        results["split twice"] = message(
            lambda: search(DistributedProblem(Ackley()), 7, enable_distributed=True)
        )
    Path(out).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
