"""EvoX's PSO tunes EvoGM's own settings: every evaluation of the outer search is a whole search.

python benchmarks/examples/tune_evogm.py
"""

import torch
from evox.algorithms import PSO
from evox.problems.hpo_wrapper import HPOFitnessMonitor, HPOProblemWrapper
from evox.problems.numerical import Ackley
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM

SETTINGS = ("lr", "winner_ratio", "cycle_weight", "opt_weight")


class ToSettings(torch.nn.Module):
    """A point of the outer search as settings: the first and the last two are powers of ten."""

    def forward(self, points: torch.Tensor) -> dict[str, torch.Tensor]:
        values = (10 ** points[:, 0], points[:, 1], 10 ** points[:, 2], 10 ** points[:, 3])
        return {f"algorithm.{name}": value for name, value in zip(SETTINGS, values, strict=True)}


torch.manual_seed(0)
bounds = torch.full((4,), 32.0)
search = StdWorkflow(
    EvoGM(8, -bounds, bounds, proposal="paper", n_iters=2, epochs=50, hidden_dims=(32, 32)),
    Ackley(shift=torch.tensor([10.0, -5.0, 3.0, 8.0])),
    HPOFitnessMonitor(),
)
tuning = HPOProblemWrapper(iterations=6, num_instances=8, workflow=search, copy_init_state=True)

monitor = EvalMonitor()
lower, upper = torch.tensor([-5.0, 0.05, -2.0, -2.0]), torch.tensor([-1.5, 0.9, 3.0, 2.0])
workflow = StdWorkflow(PSO(8, lower, upper), tuning, monitor, solution_transform=ToSettings())
workflow.init_step()
first = monitor.get_best_fitness()
for _ in range(9):
    workflow.step()

best = ToSettings()(monitor.get_best_solution()[None])
print("| setting | tuned |\n| --- | ---: |")
for name in SETTINGS:
    print(f"| {name} | {float(best[f'algorithm.{name}']):.2g} |")
print(
    f"\nAckley after 48 evaluations: best of 8 settings {first:.2f}, best of 80 {monitor.get_best_fitness():.2f}"
)
