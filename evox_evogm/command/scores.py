"""The rows of the final table: dev and test scores of the base, the experts and the merges."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evox_evogm.command.tasks import RunTasks
from evox_evogm.problems.lora_merge import LoRAMergeProblem

Scores = dict[str, float]  # the mean score of each task, by its name


@dataclass(frozen=True)
class ScoreRow:
    """The scores of one model, higher is better.

    :param name: of the model.
    :param dev: mean scores on the dev examples, by task.
    :param test: mean scores on the test examples, by task.
    """

    name: str
    dev: Scores
    test: Scores


@dataclass(frozen=True)
class Candidate:
    """A merge that gets a row.

    :param name: of the row.
    :param coefficients: `(n,)` effective coefficients.
    """

    name: str
    coefficients: torch.Tensor


def score_rows(
    problem: LoRAMergeProblem,
    tasks: RunTasks,
    best: Candidate,
    records: Sequence[dict],
) -> list[ScoreRow]:
    """The rows of the base, every expert, their average, and the best merge.

    A search around the RegMean merge has a row for this too. All rows are scored as one population;
    where the experts are regressed, as two: the rows of the experts as they are, then the others.
    Dev scores of merges that the search evaluated are those of the history.

    Merges that share batches are padded and rounded differently than alone. So a score may differ
    in its last digits from that of the row by itself, and where two answers are equally likely up
    to rounding, an example may be right in one and wrong in the other.

    :param problem: of the search.
    :param tasks: in both splits.
    :param best: the best merge, over the experts of the search.
    :param records: the history of the search.
    """
    n = problem.n_experts
    given = [Candidate("base", torch.zeros(n))]
    for expert, coefficients in zip(problem.experts, torch.eye(n), strict=True):
        given.append(Candidate(expert.name, coefficients))
    given.append(Candidate("average", torch.eye(n).mean(0)))
    if not problem.regressed:
        return score_candidates(problem, tasks, [*given, best], records)
    regressed = [Candidate("RegMean", torch.ones(n)), best]
    rows = score_candidates(problem.with_experts_as_given(), tasks, given, [])
    return rows + score_candidates(problem, tasks, regressed, records)


def score_candidates(
    problem: LoRAMergeProblem,
    tasks: RunTasks,
    candidates: Sequence[Candidate],
    records: Sequence[dict],
) -> list[ScoreRow]:
    """A row for every candidate, scored as one population.

    :param problem: whose experts the coefficients are over.
    :param tasks: in both splits.
    :param candidates: at least one.
    :param records: what was evaluated before, with dev scores.
    """
    population = torch.stack([candidate.coefficients for candidate in candidates])  # (P, n)
    known = dev_scores_by_point(records)
    points = [tuple(point) for point in population.tolist()]
    unseen = [row for row, point in enumerate(points) if point not in known]
    if unseen:
        new = mean_scores(problem, population[unseen])
        for row, scores in zip(unseen, new, strict=True):
            known[points[row]] = scores
    test = mean_scores(problem, population, tasks.test)
    rows = []
    for candidate, point, scores in zip(candidates, points, test, strict=True):
        rows.append(ScoreRow(candidate.name, known[point], scores))
    return rows


def dev_scores_by_point(records: Sequence[dict]) -> dict[tuple[float, ...], Scores]:
    """The dev scores in a history, by coefficients, without those of failed and pruned merges."""
    found: dict[tuple[float, ...], Scores] = {}
    for record in records:
        if record["score"] is not None and "estimate" not in record:
            found.setdefault(tuple(record["coefficients"]), record["tasks"])
    return found


def mean_scores(problem: LoRAMergeProblem, population: torch.Tensor, tasks=None) -> list[Scores]:
    """Mean scores by task of each merge of a population.

    :param population: a `(P, n)` tensor of effective coefficients.
    :param tasks: by default those of the problem.
    """
    means: list[Scores] = [{} for _ in population]
    for name, scores in problem.score_together(population, tasks).items():  # (P, S)
        for row, mean in zip(means, scores.mean(1).tolist(), strict=True):
            row[name] = mean
    return means
