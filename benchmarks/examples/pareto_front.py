"""Every task as an objective: NSGA-II and RVEA look for the merges that no other merge beats on all tasks.

The score of a task is the mean log-probability of the right answers, which tells merges apart that get equally many right.

python benchmarks/examples/pareto_front.py [BASE EXPERT EXPERT...]
"""

import sys
from pathlib import Path

import torch
from evox.algorithms import NSGA2, RVEA
from evox.workflows import EvalMonitor, StdWorkflow

import evox_evogm
from evox_evogm.problems import LoRAMergeProblem, read_reasoning_gym

shipped = Path(evox_evogm.__file__).parent / "demo/experts"
base, *experts = sys.argv[1:] or [
    "smollm2-135m-instruct",
    *(shipped / name for name in ("gcd", "chain_sum")),
]
sources = ("gcd", "chain_sum")
tasks = [
    read_reasoning_gym(source, dev=20, test=1, metric="gold_log_probability")[0]
    for source in sources
]
problem = LoRAMergeProblem(base, experts, tasks, objectives="tasks")

bounds = torch.full((problem.n_experts,), 1.5)  # merges may well be scaled beyond 1
algorithms = {
    "NSGA-II": lambda: NSGA2(10, len(tasks), -bounds, bounds),
    "RVEA": lambda: RVEA(10, len(tasks), -bounds, bounds, max_gen=5),
}
for name, make in algorithms.items():
    torch.manual_seed(0)
    monitor = EvalMonitor(multi_obj=True, full_sol_history=True)
    workflow = StdWorkflow(make(), problem, monitor, opt_direction=["max"] * len(tasks))
    workflow.init_step()
    for _ in range(4):
        workflow.step()
    coefficients, scores = monitor.get_pf()
    print(f"\n{name}: {len(scores)} merges on the front\n")
    print("| " + " | ".join([task.name for task in tasks] + ["coefficients"]) + " |")
    print("| " + " | ".join(["---:"] * len(tasks) + ["---"]) + " |")
    for row in scores[:, 0].argsort(descending=True).tolist():
        values = [f"{score:.2f}" for score in scores[row].tolist()]
        print(
            "| "
            + " | ".join([*values, ", ".join(f"{c:+.2f}" for c in coefficients[row].tolist())])
            + " |"
        )
