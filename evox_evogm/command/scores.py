"""The rows of the final table: dev and test scores of the base, the experts and the merges."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

import torch

from evox_evogm.command.constraint_settings import MULTI_OBJECTIVE
from evox_evogm.command.task_settings import SPLITS
from evox_evogm.command.tasks import RunTasks
from evox_evogm.command.uncertainty import standard_errors
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.retries import evaluate_with_retries
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.task import Task

Scores = dict[str, float]  # the mean score of each task, by its name
ByExample = Mapping[str, Sequence[float]]  # the score of each example, by task
Kind = Literal["base", "expert", "average", "RegMean", "trained", "merge"]
# Of rows of no expert.
ROW_NAMES = (
    "base",
    "average",
    "RegMean",
    "LoRA on dev",
    "EvoGM",
    "SurrogateEvoGM",
    "GradientSearch",
    *MULTI_OBJECTIVE,
)
EXPERT = "expert "  # goes before the name of an expert that could be another row's


@dataclass(frozen=True)
class ScoreRow:
    """The scores of one model, higher is better. NaN where the model has none.

    :param name: of the model.
    :param kind: what the model is; an expert may have the name of another row.
    :param dev: mean scores on the dev examples, by task.
    :param test: mean scores on the test examples, by task.
    :param failure: why the model could not be scored, or None.
    :param examples: by split the score of each example, by task; empty where it is not known.
    """

    name: str
    kind: Kind
    dev: Scores
    test: Scores
    failure: str | None = None
    examples: Mapping[str, ByExample] = field(default_factory=dict)

    def as_table(self) -> dict:
        """The row for `result.json`, with the standard error of every score over its examples."""
        table = asdict(self)
        del table["examples"]
        table["errors"] = {}
        for split in SPLITS:
            errors = standard_errors(self.examples.get(split, {}))
            table["errors"][split] = {name: errors.get(name, math.nan) for name in table[split]}
        return table


@dataclass(frozen=True)
class Candidate:
    """A merge that gets a row.

    :param name: of the row.
    :param coefficients: `(n g,)` effective coefficients.
    :param kind: of the row.
    """

    name: str
    coefficients: torch.Tensor
    kind: Kind = "merge"


def label(kind: str, name: str) -> str:
    """The name of a row as a reader sees it, different for different rows.

    An expert called "average" is shown as "expert average". Names of experts that begin with
    "expert " get another one, so that no two experts are shown alike.
    """
    shown = sanitize(name)
    is_ambiguous = shown in ROW_NAMES or f"{shown} ".startswith(EXPERT)
    return f"{EXPERT}{shown}" if kind == "expert" and is_ambiguous else shown


def score_rows(
    problem: LoRAMergeProblem,
    tasks: RunTasks,
    best: Candidate,
    records: Sequence[dict],
    known: Sequence[ScoreRow] = (),
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
    :param known: rows of an earlier result of this run, which are not scored again.
    """
    as_given = problem.with_experts_as_given()
    expand, one_hots = problem.groups.expand, torch.eye(as_given.n_experts)
    given = [Candidate("base", expand(torch.zeros(as_given.n_experts)), "base")]
    for expert, coefficients in zip(as_given.experts, one_hots, strict=True):
        given.append(Candidate(expert.name, expand(coefficients), "expert"))
    given.append(Candidate("average", expand(one_hots.mean(0)), "average"))
    if not problem.regressed:
        return score_unknown(problem, tasks, [*given, best], records, known)
    regressed = [Candidate("RegMean", problem.start, "RegMean"), best]
    rows = score_unknown(as_given, tasks, given, [], known)
    return rows + score_unknown(problem, tasks, regressed, records, known)


def score_unknown(
    problem: LoRAMergeProblem,
    tasks: RunTasks,
    candidates: Sequence[Candidate],
    records: Sequence[dict],
    known: Sequence[ScoreRow],
) -> list[ScoreRow]:
    """A row for every candidate; those that have a known row keep it, see `score_candidates`."""
    rows: dict[tuple[str, str], ScoreRow] = {(row.kind, row.name): row for row in known}
    unknown = []
    for candidate in candidates:
        if (candidate.kind, candidate.name) not in rows:
            unknown.append(candidate)
    if unknown:
        for row in score_candidates(problem, tasks, unknown, records):
            rows[row.kind, row.name] = row
    return [rows[candidate.kind, candidate.name] for candidate in candidates]


def score_candidates(
    problem: LoRAMergeProblem,
    tasks: RunTasks,
    candidates: Sequence[Candidate],
    records: Sequence[dict],
) -> list[ScoreRow]:
    """A row for every candidate, scored as one population.

    What fails is scored again: with smaller batches if memory ran out, otherwise each candidate
    alone. A candidate that fails twice has a row without scores.

    :param problem: whose experts the coefficients are over.
    :param tasks: in both splits.
    :param candidates: at least one.
    :param records: what was evaluated before, with dev scores.
    :raises RuntimeError: if no candidate can be scored.
    """
    population = torch.stack([candidate.coefficients for candidate in candidates])  # (P, n g)
    known = dev_scores_by_point(records)
    points = [tuple(point) for point in population.tolist()]
    unseen = [row for row, point in enumerate(points) if point not in known]
    examples: dict[tuple[float, ...], ByExample] = {}
    failures: dict[tuple[float, ...], str | None] = {}
    for found in score_models(problem, population[unseen]):
        known[found.point] = found.scores
        examples[found.point] = found.examples
        failures[found.point] = found.failure
    test = score_models(problem, population, tasks.test)
    if all(found.failure for found in test):
        expected = f"expected test scores, found that all {len(test)} models failed"
        raise RuntimeError(f"scores: {expected}: {test[0].failure}")
    rows = []
    for candidate, found in zip(candidates, test, strict=True):
        failure = found.failure or failures.get(found.point)
        dev = known[found.point]
        if found.point not in examples:
            examples[found.point] = known_examples(problem, candidate.coefficients)
        by_split = {"dev": examples[found.point], "test": found.examples}
        rows.append(ScoreRow(candidate.name, candidate.kind, dev, found.scores, failure, by_split))
    return rows


def known_examples(problem: LoRAMergeProblem, coefficients: torch.Tensor) -> ByExample:
    """The dev scores by example of a merge that the search evaluated; empty if they are not known.

    :param coefficients: `(n g,)` effective coefficients.
    """
    pop = coefficients[None]
    if len(problem.cache.unseen(pop)):
        return {}
    (found,) = problem.cache.find(pop)
    if found.failure or not found.is_whole:
        return {}
    return each_once(problem.tasks, found.scores)


def each_once(tasks: Sequence[Task], scores: ByExample) -> dict[str, Sequence[float]]:
    """Scores by example; of a task that is scored as a whole its one score.

    :param scores: in which every example of such a task has the score of the whole.
    """
    found = dict(scores)
    for task in tasks:
        if isinstance(task, CustomTask) and not task.scores_by_example and task.name in found:
            found[task.name] = found[task.name][:1]
    return found


def dev_scores_by_point(records: Sequence[dict]) -> dict[tuple[float, ...], Scores]:
    """The dev scores in a history, by coefficients, of merges with scores on all examples."""
    found: dict[tuple[float, ...], Scores] = {}
    for record in records:
        if record["score"] is not None and "estimate" not in record:
            found.setdefault(tuple(record["coefficients"]), record["tasks"])
    return found


class Scored(NamedTuple):
    """The scores of one merge."""

    point: tuple[float, ...]
    """Its effective coefficients."""
    scores: Scores
    """NaN in every task if the merge failed."""
    failure: str | None
    """Why it failed, or None."""
    examples: ByExample
    """The score of each example; empty if the merge failed."""


def score_models(
    problem: LoRAMergeProblem, population: torch.Tensor, tasks: Sequence[Task] | None = None
) -> list[Scored]:
    """Score each merge of a population, and what fails once more.

    :param population: a `(P, n g)` tensor of effective coefficients.
    :param tasks: by default those of the problem.
    """

    def evaluate(pop: torch.Tensor) -> list[Evaluation]:
        by_row: list[dict[str, Sequence[float]]] = [{} for _ in pop]
        for name, table in problem.score_together(pop, tasks).items():  # (P, S)
            for by_task, values in zip(by_row, table.tolist(), strict=True):
                by_task[name] = values
        evaluations = []
        for point, by_task in zip(pop.tolist(), by_row, strict=True):
            evaluations.append(Evaluation(tuple(point), by_task, seconds=0.0))
        return evaluations

    names = [task.name for task in (problem.tasks if tasks is None else tasks)]
    models = []
    for found in evaluate_with_retries(population, evaluate, problem.language_model):
        scores = dict.fromkeys(names, math.nan)
        if not found.failure:
            scores = found.by_task
        examples = {} if found.failure else each_once(tasks or problem.tasks, found.scores)
        models.append(Scored(found.coefficients, scores, found.failure, examples))
    return models
