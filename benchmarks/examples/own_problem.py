"""A problem of your own: how much should each of six predictors count in an ensemble?

python benchmarks/examples/own_problem.py
"""

import torch
from evox import compile
from evox.core import Mutable, Problem
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import SurrogateEvoGM


class Ensemble(Problem):
    """Log loss of a weighted sum of predictors on labelled data."""

    def __init__(self, logits: torch.Tensor, labels: torch.Tensor):
        """:param logits: (n, S, classes), of each predictor. :param labels: (S,) classes."""
        super().__init__()
        # Tensors of the state move with the workflow to its device.
        self.logits = Mutable(logits)
        self.labels = Mutable(labels)

    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        """:param pop: (P, n) weights. :return: (P,) losses, to be minimised."""
        mixed = torch.einsum("pn,nsc->psc", pop, self.logits).log_softmax(2)  # (P, S, classes)
        return -mixed[:, torch.arange(len(self.labels)), self.labels].mean(1)


torch.manual_seed(0)
labels = torch.randint(3, (300,))
skill = torch.tensor([1.5, 1.0, 0.5, 0.2, 0.0, -0.5])  # the last predictor is systematically wrong
logits = torch.randn(6, 300, 3) + skill[:, None, None] * torch.nn.functional.one_hot(labels, 3)
problem = Ensemble(logits, labels)

monitor = EvalMonitor()
algorithm = SurrogateEvoGM(pop_size=3, lb=-2 * torch.ones(6), ub=2 * torch.ones(6))
workflow = StdWorkflow(algorithm, problem, monitor)
workflow.init_step()
step = compile(workflow.step)
for _ in range(31):
    step()

losses_alone = problem.evaluate(torch.eye(6)).tolist()
weights = monitor.get_best_solution().tolist()
print("| predictor | alone | weight |\n| --- | ---: | ---: |")
for index, (loss, weight) in enumerate(zip(losses_alone, weights, strict=True)):
    print(f"| {index} | {loss:.3f} | {weight:+.2f} |")
average = problem.evaluate(torch.full((1, 6), 1 / 6))[0]
best = monitor.get_best_fitness()
print(f"\nlog loss: average {average:.3f}, best of {3 * 32} evaluations {best:.3f}")
