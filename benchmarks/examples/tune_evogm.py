"""EvoX's PSO tunes EvoGM's own settings: every evaluation of the outer search is a whole search.

python benchmarks/examples/tune_evogm.py
"""

import torch
from evox.algorithms import PSO
from evox.problems.hpo_wrapper import HPOFitnessMonitor, HPOProblemWrapper
from evox.problems.numerical import Ackley
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM


class ToSettings(torch.nn.Module):
    """A point of the outer search as settings: all but the winner ratio are powers of ten."""

    def forward(self, points: torch.Tensor) -> dict[str, torch.Tensor]:
        lr, winner_ratio, cycle_weight, opt_weight = points.T
        return {
            "algorithm.lr": 10**lr,
            "algorithm.winner_ratio": winner_ratio,
            "algorithm.cycle_weight": 10**cycle_weight,
            "algorithm.opt_weight": 10**opt_weight,
        }


torch.manual_seed(0)
bounds = torch.full((4,), 32.0)
algorithm = EvoGM(8, -bounds, bounds, n_iters=2, epochs=50, hidden_dims=(32, 32))
problem = Ackley(shift=torch.tensor([10.0, -5.0, 3.0, 8.0]))
search = StdWorkflow(algorithm, problem, HPOFitnessMonitor())
tuning = HPOProblemWrapper(iterations=6, num_instances=8, workflow=search, copy_init_state=True)

monitor = EvalMonitor()
lower, upper = torch.tensor([-5.0, 0.05, -2.0, -2.0]), torch.tensor([-1.5, 0.9, 3.0, 2.0])
workflow = StdWorkflow(PSO(8, lower, upper), tuning, monitor, solution_transform=ToSettings())
workflow.init_step()
first = monitor.get_best_fitness()
for _ in range(9):
    workflow.step()

print("| setting | tuned |\n| --- | ---: |")
for name, value in ToSettings()(monitor.get_best_solution()[None]).items():
    print(f"| {name.removeprefix('algorithm.')} | {float(value):.2g} |")
best = monitor.get_best_fitness()
print(f"\nAckley after 48 evaluations: best of 8 settings {first:.2f}, best of 80 {best:.2f}")
