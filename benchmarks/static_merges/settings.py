"""A setting of a static merge, and the suite that it is scored on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.static_merges.dense import Weights, mean_scores, weights_in_place
from benchmarks.suites.suite import SUITES
from evox_evogm.problems import LoRAMergeProblem, Task

Scores = dict[str, float]  # by task


@dataclass
class Setting:
    """One merge of a grid."""

    name: str
    """What was chosen, such as a scale."""
    score: Callable[[list[Task]], Scores]
    """Scores the merge on some tasks."""


class LoadedSuite:
    """The problem of a suite, its test tasks, and the questions that each expert was made for."""

    def __init__(self, name: str, n: int, dev_examples: int | None = None):
        """Load a suite in float32: weights in bfloat16 would round most of a small delta away.

        :param name: `"synthetic"` or `"smollm2"`.
        :param n: experts.
        :param dev_examples: dev questions a task, if not those of the suite.
        """
        suite = SUITES[name]
        self._make_problem = partial(
            suite.make_problem, n, dtype=torch.float32, dev_examples=dev_examples
        )
        self.problem: LoRAMergeProblem = self._make_problem()
        self.dev = self.problem.tasks
        self.test = suite.tasks(n, "test", None, dev_examples)
        self.experts = [expert.name for expert in self.problem.experts]
        tasks = {task.name: task for task in self.dev}
        self.own_tasks = [tasks[suite.task_of_expert(expert)] for expert in self.experts]

    @property
    def n(self) -> int:
        return len(self.experts)

    def around_regmean(self, kind: str) -> LoRAMergeProblem:
        """The problem with experts that were regressed: their sum is the RegMean merge."""
        return self._make_problem(regmean=kind)

    def linear(self, name: str, coefficients: torch.Tensor, regmean: str = "") -> Setting:
        """A merge that is an `(n,)` vector of coefficients.

        :param regmean: what the experts are regressed on, see `benchmarks/suites/anchors.py`.
        """
        problem = self.around_regmean(regmean) if regmean else self.problem

        def score(tasks: list[Task]) -> Scores:
            scores = problem.score_tasks(coefficients, tasks)
            return {task: float(values.mean()) for task, values in scores.items()}

        return Setting(name, score)

    def dense(self, name: str, weights: Weights) -> Setting:
        """A merge that is weights of the modules that experts change."""

        def score(tasks: list[Task]) -> Scores:
            with weights_in_place(self.problem.language_model.model, weights):
                return mean_scores(self.problem.language_model, tasks)

        return Setting(name, score)


def mean(scores: Scores) -> float:
    return sum(scores.values()) / len(scores)
