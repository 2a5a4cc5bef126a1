"""Retries: what failed is evaluated again, in smaller batches if memory ran out, otherwise alone.

A merge can break a model in many ways, and the search goes on. What fails twice has failed, and
counts as worst.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.failures import (
    DeviceLost,
    RankLost,
    SharedFailure,
    in_one_line,
    is_lost,
    is_out_of_memory,
)
from evox_evogm.problems.inference.scored_model import ScoredModel

log = logging.getLogger(__name__)
Evaluate = Callable[[torch.Tensor], Sequence[Evaluation]]  # (P, n g) -> P evaluations
Found = TypeVar("Found")  # what an evaluation of P merges gives


@dataclass(frozen=True)
class Attempt(Generic[Found]):
    """The outcome of evaluating some merges together.

    :param evaluations: what was found, by default an evaluation per merge, or None if an error
        ended the attempt. An evaluation without finite scores has a `failure`.
    :param error: the error's type and message in one line.
    :param out_of_memory: whether the error says that memory ran out.
    """

    evaluations: Found | None
    error: str = ""
    out_of_memory: bool = False


def evaluate_with_retries(
    pop: torch.Tensor, evaluate: Evaluate, model: ScoredModel
) -> list[Evaluation]:
    """Evaluate merges together, and those that fail once more.

    - If memory runs out, the batches are halved, for good, until it does not.
    - If another error ends the evaluation, every merge is evaluated alone, at most twice.
    - If single merges have no finite scores, each of them is evaluated again, alone.

    :param pop: a `(P, n g)` tensor of effective coefficients.
    :param evaluate: the evaluation, which may raise any error.
    :param model: whose `batch_tokens` are halved.
    :return: P evaluations. One that failed twice has a `failure` and no scores.
    :raises ValueError: if `evaluate` raises one: the input cannot be used, whatever the merge.
    :raises DeviceLost: if the device computes nothing any more: no merge is to blame.
    """
    if len(pop) == 0:
        return []
    start = time.perf_counter()
    together = attempt_in_smaller_batches(pop, evaluate, model)
    if together.evaluations is None and len(pop) > 1:
        log.warning(
            "%d merges failed together (%s): trying them one by one", len(pop), together.error
        )
        return evaluate_one_by_one(pop, evaluate, model)
    if together.evaluations is None:
        evaluations = [evaluate_once_more(pop, evaluate, model, start)]
    else:
        evaluations = retry_failures(pop, together.evaluations, evaluate, model)
    for evaluation in evaluations:
        if evaluation.failure:
            log.warning("a merge failed twice and counts as worst: %s", evaluation.failure)
    return evaluations


def attempt_in_smaller_batches(
    pop: torch.Tensor, evaluate: Callable[[torch.Tensor], Found], model: ScoredModel
) -> Attempt[Found]:
    """Evaluate merges together, with batches of half the tokens whenever memory runs out."""
    result = attempt(pop, evaluate, model)
    while result.out_of_memory and model.batch_tokens > 1:
        model.batch_tokens //= 2
        log.warning("out of memory: going on with batches of %d tokens", model.batch_tokens)
        result = attempt(pop, evaluate, model)
    return result


def evaluate_one_by_one(
    pop: torch.Tensor, evaluate: Evaluate, model: ScoredModel
) -> list[Evaluation]:
    """Evaluate every merge alone, those that fail twice."""
    evaluations = []
    for row in pop:
        evaluations += evaluate_with_retries(row[None], evaluate, model)
    return evaluations


def retry_failures(
    pop: torch.Tensor,
    evaluations: Sequence[Evaluation],
    evaluate: Evaluate,
    model: ScoredModel,
) -> list[Evaluation]:
    """The evaluations of merges; each that failed is made again, alone."""
    retried = []
    for row, evaluation in enumerate(evaluations):
        if evaluation.failure:
            again = attempt(pop[row : row + 1], evaluate, model)
            if again.evaluations is None:
                evaluation = replace(evaluation, failure=again.error)
            else:
                evaluation = again.evaluations[0]
        retried.append(evaluation)
    return retried


def evaluate_once_more(
    pop: torch.Tensor, evaluate: Evaluate, model: ScoredModel, start: float
) -> Evaluation:
    """The evaluation of a single merge `(1, n)` after an error; a second error is its failure.

    :param start: when the first attempt began, by `time.perf_counter`.
    """
    again = attempt(pop, evaluate, model)
    if again.evaluations is not None:
        return again.evaluations[0]
    seconds = time.perf_counter() - start
    return Evaluation(tuple(pop[0].tolist()), {}, seconds, again.error)


def attempt(
    pop: torch.Tensor, evaluate: Callable[[torch.Tensor], Found], model: ScoredModel
) -> Attempt[Found]:
    """Evaluate merges together.

    An error is kept as text: the error itself would keep the tensors of what failed.

    :raises DeviceLost: if the device of the model computes nothing any more.
    """
    try:
        return Attempt(evaluate(pop))
    except (ValueError, RankLost, DeviceLost):
        raise
    except SharedFailure as error:
        return Attempt(None, str(error))
    except Exception as error:
        out_of_memory = is_out_of_memory(error)
        if not out_of_memory and is_lost(model.device):
            raise DeviceLost(
                f"device: expected {model.device} to answer, found that everything fails on it "
                f"since {in_one_line(error)}; run the same command again in a new process"
            ) from None
        message = " ".join(str(error).split())
        return Attempt(None, f"{type(error).__name__}: {message}", out_of_memory)
