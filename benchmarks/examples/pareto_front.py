"""Every task as an objective: NSGA-II and RVEA find the merges that no other beats on all tasks.

The score of a task is the mean log-probability of the right answers, which tells merges apart that
get equally many right.

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
default = ["smollm2-135m-instruct", shipped / "gcd", shipped / "chain_sum"]
base, *experts = sys.argv[1:] or default
tasks = []
for source in ("gcd", "chain_sum"):
    dev, _ = read_reasoning_gym(source, dev=20, test=1, metric="gold_log_probability")
    tasks.append(dev)
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
    order = scores[:, 0].argsort(descending=True)
    print(f"\n{name}: {len(scores)} merges on the front\n")
    print("| gcd | chain_sum | coefficients |\n| ---: | ---: | --- |")
    for row in order.tolist():
        first, second = scores[row].tolist()
        point = ", ".join(f"{value:+.2f}" for value in coefficients[row].tolist())
        print(f"| {first:.2f} | {second:.2f} | {point} |")
