"""EvoX's PSO and CMA-ES (package cmaes) merge LoRA experts, as any EvoX algorithm does.

python benchmarks/examples/pso_and_cma_es.py [BASE EXPERT EXPERT...]
"""

import sys
from pathlib import Path

import torch
from evox.algorithms import PSO
from evox.workflows import EvalMonitor, StdWorkflow

import evox_evogm
from evox_evogm import SurrogateEvoGM
from evox_evogm.baselines import CMAES
from evox_evogm.problems import LoRAMergeProblem, read_reasoning_gym

shipped = Path(evox_evogm.__file__).parent / "demo/experts"
names = ("gcd", "chain_sum", "syllogism")
default = ["smollm2-135m-instruct", *(shipped / name for name in names)]
base, *experts = sys.argv[1:] or default
tasks = [read_reasoning_gym(source, dev=8, test=1)[0] for source in ("gcd", "chain_sum")]
problem = LoRAMergeProblem(base, experts, tasks)

n = problem.n_experts
upper = torch.ones(n)
algorithms = {
    "SurrogateEvoGM": lambda: SurrogateEvoGM(6, -upper, upper),
    "PSO": lambda: PSO(6, -upper, upper),
    "CMA-ES, from the average": lambda: CMAES(upper / n, 1 / 6, 6),
}
print("| 24 evaluations | dev | coefficients |\n| --- | ---: | --- |")
for name, make in algorithms.items():
    torch.manual_seed(0)
    monitor = EvalMonitor()
    workflow = StdWorkflow(make(), problem, monitor, opt_direction="max")
    workflow.init_step()
    for _ in range(3):
        workflow.step()
    coefficients = ", ".join(f"{value:+.2f}" for value in monitor.get_best_solution().tolist())
    print(f"| {name} | {monitor.get_best_fitness():.3f} | {coefficients} |")
