"""64 seeds of EvoGM as one workflow: stacked states under vmap, compiled together.

Results are read from the state: EvoX's `EvalMonitor` is for one run. `randomness="different"` makes
the runs differ.

    python benchmarks/examples/many_seeds.py [SEEDS]
"""

import sys

import torch
from evox import compile, use_state, vmap
from evox.problems.numerical import Ackley
from evox.workflows import StdWorkflow

from evox_evogm import EvoGM

seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 64
torch.manual_seed(0)
upper = torch.full((10,), 32.0)
problem = Ackley(shift=torch.linspace(-10, 10, 10))
workflow = StdWorkflow(EvoGM(20, -upper, upper), problem)

parameters, buffers = torch.func.stack_module_state([workflow] * seeds)
state = {**parameters, **buffers}
state = vmap(use_state(workflow.init_step), randomness="different")(state)
step = compile(vmap(use_state(workflow.step), randomness="different"))

print("| evaluations | lower quartile | median | upper quartile |\n| ---: | ---: | ---: | ---: |")
best = torch.full((seeds,), torch.inf)
for evaluations in range(20, 161, 20):
    best_of_round = state["algorithm.fitness"][:, 0]  # (seeds,), the history has the best first
    best = torch.minimum(best, best_of_round)
    quartiles = best.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    print(f"| {evaluations} | " + " | ".join(f"{value:.2f}" for value in quartiles) + " |")
    if evaluations < 160:
        state = step(state)

# The history of the last round is in units of the box, over the axes of the round.
leader = best.argmin()
point = state["algorithm.points"][leader, 0] @ state["algorithm.basis"][leader]  # (n,)
coordinates = [f"{value:.1f}" for value in (32.0 * point.clamp(-1, 1)).tolist()]
print("best point of the last round of the best seed:", coordinates)
