"""Scores of merges by functions of the user's own. A call that fails is one merge that failed."""

import random
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evox_evogm.problems.functions.fitness_task import FitnessTask
from evox_evogm.problems.functions.merged_model import MergedModel, MergedPopulation, one_by_one
from evox_evogm.problems.functions.returned import Returned, parse_population, parse_returned
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.task import Task

if TYPE_CHECKING:
    from evox_evogm.problems.population_scorer import PopulationScorer


class FitnessFailed(RuntimeError):
    """A function raised an error, or returned something that is no score, in one sentence."""


def functions_of(tasks: Sequence[Task]) -> list[FitnessTask]:
    """The tasks that are functions."""
    return [task for task in tasks if isinstance(task, FitnessTask)]


def without_functions(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that have examples."""
    return [task for task in tasks if not isinstance(task, FitnessTask)]


def mode_of_function(task: FitnessTask, able: Capabilities, *, large_copy: bool) -> str:
    """The mode in which a function gets its merges, where the settings do not say.

    A function makes many passes with a merge, so that one that gets them one by one gets them in
    the weights.

    :param able: what works on the base.
    :param large_copy: whether merged weights would take a copy of over half of the memory.
    """
    if not able.merged:
        return "unmerged"
    if not able.unmerged:
        return "merged"
    return "unmerged" if task.population or large_copy else "merged"


def score_functions(
    tasks: Sequence[FitnessTask],
    scorer: "PopulationScorer",
    pop: torch.Tensor,
    modes: Mapping[str, str],
    margins: dict[str, torch.Tensor],
    failures: dict[int, str],
) -> dict[str, torch.Tensor]:
    """Scores of P merges by functions.

    :param scorer: whose base and experts are merged.
    :param pop: a `(P, n g)` tensor of effective coefficients.
    :param modes: the mode of each task, by name.
    :param margins: by task name a `(P, S)` tensor to write to.
    :param failures: why a merge has no score, by its row, to write to.
    :return: by task name a `(P, S)` tensor on the CPU; NaN in the rows of merges that failed.
    """
    scores = {}
    for task in tasks:
        called = call_for_all(task, scorer, pop, modes[task.name])
        task = task if task.measured else as_returned(task, called)
        scores[task.name] = torch.full((len(pop), len(task.examples)), torch.nan)
        margins[task.name] = torch.zeros(len(pop), len(task.examples))
        for row, returned in enumerate(called):
            fault = returned if isinstance(returned, str) else unexpected(task, returned)
            if fault is not None:
                failures.setdefault(row, sentence(task, fault))
                continue
            assert isinstance(returned, Returned)
            scores[task.name][row] = torch.tensor(returned.scores)
            by_example = returned.margins or returned.scores
            margins[task.name][row] = torch.tensor(by_example)
    return scores


def call_for_all(
    task: FitnessTask, scorer: "PopulationScorer", pop: torch.Tensor, mode: str
) -> list[Returned | str]:
    """What a function returned of each merge, or why it did not.

    :raises FitnessFailed: if a function of a whole population failed: its merges may be tried one
        by one then.
    """
    model = scorer.language_model
    if not task.population:
        found: list[Returned | str] = []
        with closing(one_by_one(scorer, pop, mode)) as merges:
            for coefficients, _ in zip(pop.tolist(), merges, strict=True):
                found.append(call(task, MergedModel(model, coefficients)))
        return found
    entries = call(task, MergedPopulation(model, pop, scorer, mode))
    if isinstance(entries, str):
        raise FitnessFailed(sentence(task, entries))
    return entries


def call(task: FitnessTask, merge: MergedModel | MergedPopulation) -> Any:
    """What a function returned, or why it did not, as a text.

    :raises Exception: if torch ran out of memory, of which smaller batches take less, or the
        device computes nothing any more.
    """
    from evox_evogm.problems.failures import is_lost, is_out_of_memory_by_torch

    try:
        with own_random_numbers(), torch.no_grad():
            value = task.function(merge, **task.arguments())
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception) and is_out_of_memory_by_torch(error):
            raise
        if isinstance(error, RuntimeError) and is_lost(merge.device):
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())}{place_of(error, task)}"
    try:
        if isinstance(merge, MergedModel):
            return parse_returned(value)
        parsed: list[Returned | str] = []
        for entry in parse_population(value, len(merge)):
            parsed.append(parse_entry(entry))
        return parsed
    except ValueError as error:
        return str(error)


def parse_entry(entry: Any) -> Returned | str:
    """What a function returned of one merge of a population, or why it cannot be used."""
    try:
        return parse_returned(entry)
    except ValueError as error:
        return str(error)


def place_of(error: BaseException, task: FitnessTask) -> str:
    """Where in the function's module an error comes from, in brackets."""
    code = getattr(task.function, "__code__", None)
    if code is None:
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == code.co_filename:
            return f" ({frame.filename}, line {frame.lineno})"
    return ""


def unexpected(task: FitnessTask, returned: Returned) -> str | None:
    """Why what a function returned does not fit what it returned before, or None."""
    expected, found = len(task.examples), len(returned.scores)
    if found != expected:
        return f"expected {expected} numbers, as it returned of the base, found {found}"
    if task.by_sign != (returned.margins is not None):
        wanted = "scores and margins" if task.by_sign else "scores without margins"
        return f"expected {wanted}, as it returned of the base, found the other"
    return None


def sentence(task: FitnessTask, fault: str) -> str:
    """What is wrong with a call, with the names of task and function."""
    return f"task {task.name!r}: {task.source} ({task.split}): {fault}"


def as_returned(task: FitnessTask, called: Sequence[Returned | str]) -> FitnessTask:
    """The task with as many examples as the function returned numbers of the first merge."""
    for returned in called:
        if isinstance(returned, Returned):
            return task.with_size(len(returned.scores), by_sign=returned.margins is not None)
    return task


def measure(task: FitnessTask, scorer: "PopulationScorer") -> FitnessTask:
    """Call a function with the base, to find out how many numbers it returns.

    :raises ValueError: if it fails, or returns something that is no score, in one sentence.
    """
    if task.measured:
        return task
    base = torch.zeros(1, scorer.n_coefficients)
    able = scorer.language_model.capabilities
    mode = scorer.modes.get(task.name) or mode_of_function(task, able, large_copy=True)
    try:
        (returned,) = call_for_all(task, scorer, base, mode)
    except FitnessFailed as error:
        raise ValueError(f"{error}; it was called with the base") from error
    if isinstance(returned, str):
        raise ValueError(f"{sentence(task, returned)}; it was called with the base")
    return as_returned(task, [returned])


def measure_functions(tasks: Sequence[Task], scorer: "PopulationScorer") -> list[Task]:
    """The tasks, with as many examples in each function as it returns numbers of the base."""
    measured: list[Task] = []
    for task in tasks:
        if isinstance(task, FitnessTask):
            task = measure(task, scorer)
        measured.append(task)
    return measured


def score_as_it_is(
    task: FitnessTask, model: LanguageModel, margins: torch.Tensor | None
) -> torch.Tensor:
    """Scores `(S,)` of a language model as it is, such as one with a loaded adapter.

    :param margins: an `(S,)` tensor to write to.
    :raises FitnessFailed: if the function fails.
    """
    if task.population:
        entries = call(task, MergedPopulation(model, torch.zeros(1, 0)))
        returned = entries if isinstance(entries, str) else entries[0]
    else:
        returned = call(task, MergedModel(model, ()))
    if isinstance(returned, str):
        raise FitnessFailed(sentence(task, returned))
    if margins is not None:
        margins.copy_(torch.tensor(returned.margins or returned.scores))
    return torch.tensor(returned.scores)


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Inside the block random numbers begin anew; those of the search go on behind it.

    So every merge meets the same numbers, and a search can be repeated.
    """
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
