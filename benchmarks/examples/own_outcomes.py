"""A problem of your own that gives more than its score: by how much each answer is right.

python benchmarks/examples/own_outcomes.py
"""

import torch
from evox.core import Mutable, Problem
from evox.workflows import StdWorkflow

from evox_evogm import Outcomes, SurrogateEvoGM


class Accuracy(Problem):
    """Accuracy of a weighted sum of predictors, followed by the margin of every right label."""

    def __init__(self, logits: torch.Tensor, labels: torch.Tensor, with_margins: bool):
        """:param logits: (n, S, classes), of each predictor. :param labels: (S,) classes."""
        super().__init__()
        self.logits = Mutable(logits)
        self.right = Mutable(torch.nn.functional.one_hot(labels, logits.shape[2]).bool())
        self.with_margins = with_margins

    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        """:param pop: (P, n) weights. :return: (P,), or (P, 1 + S) with margins, maximised."""
        mixed = torch.einsum("pn,nsc->psc", pop, self.logits)  # (P, S, classes)
        margins = mixed[:, self.right] - mixed.masked_fill(self.right, -torch.inf).amax(2)  # (P, S)
        accuracy = (margins > 0).float().mean(1)
        return torch.cat([accuracy[:, None], margins], 1) if self.with_margins else accuracy


def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(3, (count,))
    skill = torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0, 0.0, -0.2, -0.4])[:, None, None]
    return torch.randn(8, count, 3) + skill * torch.nn.functional.one_hot(labels, 3), labels


upper = torch.ones(8)
# Each of 100 margins counts 1/100 if it is above 0.
margins = Outcomes(torch.full((100,), 1 / 100), torch.ones(100, dtype=torch.bool))
found = {"accuracy alone": [], "with margins": []}
for seed in range(6):
    torch.manual_seed(seed)
    dev, fresh = draw(100), Accuracy(*draw(5000), with_margins=False)
    for name, outcomes in (("accuracy alone", None), ("with margins", margins)):
        problem = Accuracy(*dev, with_margins=outcomes is not None)
        algorithm = SurrogateEvoGM(4, -upper, upper, outcomes=outcomes)
        workflow = StdWorkflow(algorithm, problem, opt_direction="max")
        workflow.init_step()
        for _ in range(9):
            workflow.step()
        accuracy = float(fresh.evaluate(algorithm.recommend()[None]))
        found[name].append([-float(algorithm.fitness[0]), accuracy])

print("| 40 evaluations | best on dev | recommended, on 5,000 fresh |\n| --- | ---: | ---: |")
for name, rows in found.items():
    best, accuracy = torch.tensor(rows).mean(0).tolist()  # over six draws
    print(f"| {name} | {best:.3f} | {accuracy:.4f} |")
