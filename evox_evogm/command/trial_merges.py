"""The merges of a trial: what can be had of the experts from four fifths of the dev examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from evox.core import Problem
from evox.workflows import StdWorkflow

from evox_evogm.algorithms.gradient_search import GradientSearch
from evox_evogm.command.best_expert import best_places, level_with
from evox_evogm.command.scores import ByExample
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.evaluation import GRADIENT_COST
from evox_evogm.problems.inference.base_model import ready_to_score
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.minibatches import Minibatches, minibatches_for
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.margins import smoothed_gradient
from evox_evogm.problems.tasks.task import Task


@dataclass(frozen=True)
class Parts:
    """The dev examples in two parts.

    :param kept: the tasks with the examples to learn from.
    :param held_back: the tasks with the examples to compare on.
    """

    kept: list[Task]
    held_back: list[Task]

    @property
    def sizes(self) -> tuple[int, int]:
        """The examples of both parts."""
        kept = sum(len(task.examples) for task in self.kept)
        return kept, sum(len(task.examples) for task in self.held_back)

    @property
    def share(self) -> float:
        """The part of the examples that is learnt from."""
        kept, held_back = self.sizes
        return kept / (kept + held_back)


def score_merges(
    problem: LoRAMergeProblem, parts: Parts, epochs: int, seed: int
) -> tuple[dict[str, ByExample], torch.Tensor | None]:
    """The scores of merges on what is held back.

    These are the expert that is best on what is learnt from, the average, with regressed experts
    the RegMean merge, and the merge of a short search along gradients.

    :param epochs: of that search.
    :return: by name the scores by example, and the coefficients of the search; None where the base
        or a task gives no gradients.
    """
    given = problem.with_experts_as_given()
    one_hots = problem.groups.expand(torch.eye(given.n_experts))  # (n, n g)
    on_kept = given.score_together(one_hots, parts.kept)
    means = torch.stack([scores.mean(1) for scores in on_kept.values()]).mean(0)  # (n,)
    best, *level = best_places(means.tolist())
    experts = [sanitize(given.experts[place].name) for place in (best, *level)]
    names = [f"best expert ({experts[0]}{level_with(experts[1:])})", "average"]
    pop = torch.stack([one_hots[best], one_hots.mean(0)])
    found = dict(zip(names, by_row(given, pop, parts.held_back), strict=True))
    if problem.regressed:
        found["RegMean"] = by_row(problem, problem.start[None], parts.held_back)[0]
    merge = search_along_gradients(problem, parts.kept, epochs, seed)
    if merge is not None:
        found["merge by gradients"] = by_row(problem, merge[None], parts.held_back)[0]
    return found, merge


def by_row(problem: LoRAMergeProblem, pop: torch.Tensor, tasks: Sequence[Task]) -> list[ByExample]:
    """The scores by example of each merge of a population, pooled."""
    found = problem.score_together(pop, tasks)
    rows = []
    for row, _ in enumerate(pop):
        rows.append(pool({name: scores[row].tolist() for name, scores in found.items()}))
    return rows


def pool(scores: ByExample) -> ByExample:
    """The scores of all tasks as those of one.

    Of what is held back a task may have a single example, whose chance nobody knows.
    """
    pooled: list[float] = []
    for values in scores.values():
        pooled += values
    return {"all tasks": pooled}


class _Gradients(Problem):
    """The mean score of merges on minibatches, with its gradient, for `GradientSearch`."""

    def __init__(self, problem: LoRAMergeProblem, minibatches: Minibatches):
        super().__init__()
        self.problem = problem
        self.minibatches = minibatches
        self.evaluated = 0

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        tasks = self.minibatches.at(self.evaluated).tasks
        self.evaluated += 1
        with ready_to_score(self.problem.language_model.model):
            found = self.problem.scorer.differentiate(pop, tasks)
        means = torch.stack([scores.mean(1) for scores in found.scores.values()]).mean(0)
        gradient = smoothed_gradient(found.margins, found.derivatives, tasks)
        return torch.cat([means[:, None], gradient], 1)


def search_along_gradients(
    problem: LoRAMergeProblem, tasks: Sequence[Task], epochs: int, seed: int
) -> torch.Tensor | None:
    """The coefficients that a few epochs of `GradientSearch` from the average come to.

    :param epochs: over minibatches of the examples, as the command cuts them.
    :return: an `(n g,)` tensor, or None if the base or a task gives no gradients.
    """
    if not problem.capabilities.unmerged:
        return None
    for task in tasks:
        if isinstance(task, CustomTask) and task.no_derivatives is not None:
            return None
    sizes = [len(task.examples) for task in tasks]
    count = minibatches_for(GRADIENT_COST * epochs, sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        algorithm = GradientSearch(
            problem.start, blocks=problem.n_experts, device=torch.device("cpu")
        )
        searched = _Gradients(problem, Minibatches(tasks, count))
        workflow = StdWorkflow(algorithm, searched, opt_direction="max", device="cpu")
        try:
            workflow.init_step()
            for _ in range(epochs * count - 1):
                workflow.step()
        except ValueError:  # gradients do not pass through this base
            return None
        found = workflow.algorithm.recommend(evaluate=False)
    return found if bool(found.isfinite().all()) else None
