"""A problem of your own that says more than its score: accuracy, and by how much each answer is right.

python benchmarks/examples/own_outcomes.py
"""

import torch
from evox.core import Mutable, Problem
from evox.workflows import StdWorkflow

from evox_evogm import EvoGM, Outcomes


class Accuracy(Problem):
    """Of a weighted sum of predictors on labelled data, followed by the margin of every right label."""

    def __init__(self, logits: torch.Tensor, labels: torch.Tensor):
        """:param logits: (n, S, classes), what each predictor says. :param labels: (S,) classes."""
        super().__init__()
        self.logits, self.right = (
            Mutable(logits),
            Mutable(torch.nn.functional.one_hot(labels, logits.shape[2]).bool()),
        )
        # Every margin counts 1/S if it is above 0.
        self.outcomes = Outcomes(
            torch.full((len(labels),), 1 / len(labels)), torch.ones(len(labels), dtype=torch.bool)
        )

    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        """:param pop: (P, n) weights. :return: (P, 1 + S), accuracy and margins, to be maximised."""
        mixed = torch.einsum("pn,nsc->psc", pop, self.logits)  # (P, S, classes)
        margins = mixed[:, self.right] - mixed.masked_fill(self.right, -torch.inf).amax(2)  # (P, S)
        return torch.cat([(margins > 0).float().mean(1, keepdim=True), margins], 1)


class AccuracyAlone(Accuracy):
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        return super().evaluate(pop)[:, 0]


def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(3, (count,))
    skill = torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0, 0.0, -0.2, -0.4])[:, None, None]
    return torch.randn(8, count, 3) + skill * torch.nn.functional.one_hot(labels, 3), labels


def search(problem: Problem, outcomes: Outcomes | None) -> tuple[float, torch.Tensor]:
    """The best score of 40 evaluations, and the answer."""
    workflow = StdWorkflow(
        EvoGM(4, -torch.ones(8), torch.ones(8), outcomes=outcomes), problem, opt_direction="max"
    )
    workflow.init_step()
    for _ in range(9):  # populations of 4, because 3 does not divide 40
        workflow.step()
    return -float(workflow.algorithm.fitness[0]), workflow.algorithm.answer()


found = []
for seed in range(6):
    torch.manual_seed(seed)
    dev, fresh = draw(100), Accuracy(*draw(5000))
    for problem, outcomes in (
        (AccuracyAlone(*dev), None),
        (Accuracy(*dev), Accuracy(*dev).outcomes),
    ):
        best, answer = search(problem, outcomes)
        found.append([best, float(fresh.evaluate(answer[None])[0, 0])])
means = torch.tensor(found).view(6, 2, 2).mean(0)  # (2, 2), over six draws
for name, (best, accuracy) in zip(("accuracy alone", "with margins"), means.tolist(), strict=True):
    print(
        f"{name}: best of 40 evaluations {best:.3f}; the answer on 5,000 fresh examples {accuracy:.4f}"
    )
