"""Evaluations of merges that are scored together: rung after rung, or with their gradients."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from evox_evogm.problems.evaluation import GRADIENT_COST, Evaluation
from evox_evogm.problems.failures import AllFailed
from evox_evogm.problems.minibatches import Minibatch
from evox_evogm.problems.population_scorer import PopulationScorer
from evox_evogm.problems.racing import Race, Racing
from evox_evogm.problems.tasks.margins import smoothed_gradient
from evox_evogm.problems.tasks.task import Task


def score_merges(
    pop: torch.Tensor,
    *,
    scorer: PopulationScorer,
    tasks: Sequence[Task],
    racing: Racing | None,
    best: Evaluation | None,
    keep_margins: bool,
) -> list[Evaluation]:
    """Score merges together, rung after rung; without racing there is one rung.

    :param pop: a `(P, n g)` tensor of effective coefficients.
    :param best: the best evaluation so far, if merges race.
    :param keep_margins: whether the evaluations have the margins of all examples.
    """
    race = Race(pop, tasks, racing, best)
    for rung in race.rungs:
        found = scorer.score(pop[race.running], rung)
        race.add(found.scores, found.margins, found.failures)
        race.prune()
        if not race.running:
            break
    return race.evaluations(keep_margins=keep_margins)


def differentiate_merges(
    pop: torch.Tensor,
    *,
    scorer: PopulationScorer,
    minibatch: Minibatch,
    shares: Sequence[float] | None,
) -> list[Evaluation]:
    """Score merges together, with the gradient of each.

    :param pop: a `(P, n g)` tensor of effective coefficients.
    :param minibatch: the examples.
    :param shares: of each task in the mean; None if all are equal.
    """
    tasks = minibatch.tasks
    race = Race(pop, tasks)
    found = scorer.differentiate(pop, tasks)
    race.add(found.scores, found.margins)
    gradients = smoothed_gradient(found.margins, found.derivatives, tasks, shares)  # (P, n g)
    evaluations = []
    for evaluation, gradient in zip(
        race.evaluations(keep_margins=True), gradients.tolist(), strict=True
    ):
        if not evaluation.failure and not all(map(math.isfinite, gradient)):
            failure = "gradient: expected finite numbers, found others"
            evaluation = Evaluation(evaluation.coefficients, {}, evaluation.seconds, failure)
        elif not evaluation.failure:
            evaluation = replace(evaluation, gradient=tuple(gradient), places=minibatch.places)
        evaluations.append(replace(evaluation, cost=GRADIENT_COST * minibatch.share))
    return evaluations


def check_not_all_failed(evaluations: Sequence[Evaluation], fitness: torch.Tensor) -> None:
    """Stop where a population has no score at all.

    :param evaluations: of its P merges.
    :param fitness: of the same merges.
    """
    if all(evaluation.failure for evaluation in evaluations):
        raise AllFailed(fitness, str(evaluations[0].failure))
