"""Dev scores of the models that constraints compare with: the base, the experts, their average."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.retries import evaluate_with_retries

if TYPE_CHECKING:
    from evox_evogm.problems.lora_merge import LoRAMergeProblem


def score_references(
    problem: "LoRAMergeProblem", needed: Collection[str | None]
) -> dict[str, list[dict[str, float]]]:
    """The scores of models by task.

    :param problem: with the experts as they were read.
    :param needed: which of `scalarization.REFERENCES`.
    :return: by name a table of scores for each model; NaN where a model failed.
    """
    one_hots = torch.eye(problem.n_experts)
    points = {
        "base": torch.zeros(1, problem.n_experts),
        "best_expert": one_hots,
        "average": one_hots.mean(0, keepdim=True),
    }
    found = {}
    for name, rows in points.items():
        if name in needed:
            pop = torch.stack([problem.groups.expand(row) for row in rows])
            found[name] = score_models(problem, pop)
    return found


def score_models(problem: "LoRAMergeProblem", pop: torch.Tensor) -> list[dict[str, float]]:
    """The mean scores of merges by task; NaN where a merge failed.

    :param pop: a `(P, n g)` tensor of effective coefficients.
    """

    def evaluate(pop: torch.Tensor) -> list[Evaluation]:
        by_task = problem.score_together(pop)
        evaluations = []
        for row, point in enumerate(pop.tolist()):
            scores = {name: tuple(table[row].tolist()) for name, table in by_task.items()}
            evaluations.append(Evaluation(tuple(point), scores, seconds=0.0))
        return evaluations

    tables = []
    for evaluation in evaluate_with_retries(pop, evaluate, problem.language_model):
        scores = dict.fromkeys([task.name for task in problem.tasks], float("nan"))
        tables.append(scores if evaluation.failure else evaluation.by_task)
    return tables
