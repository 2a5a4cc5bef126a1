"""Runs that learned nothing: base, experts and merges all score alike, and what usually causes it.

A search needs differences between scores. Where there are none, its merge is arbitrary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evox_evogm.command.scores import ScoreRow, dev_scores_by_point
from evox_evogm.command.tasks import RunTasks
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.functions.fitness_task import FitnessTask
from evox_evogm.problems.images.image_task import ImageTask
from evox_evogm.problems.inference.base_model import ready_to_score
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.tasks.requests import Case, gold_text, prompts_of
from evox_evogm.problems.tasks.task import Task

ROUNDING = 1e-6  # relative difference up to which two scores are alike
CAUSES = (
    "Answers are not parsed: metric, match or max_new_tokens do not fit the form of the output.",
    "Prompts are of the wrong kind: chat prompts (chat: true) for a base without chat training, or "
    "plain prompts for a base that is trained for chats.",
    "Targets carry their rationale: a target has to be the answer alone.",
    "The experts change nothing in these tasks, or all examples are too easy or too hard.",
)


CAUSES_OF_FUNCTIONS = (
    "The function returns the same whatever the model answers: it does not call it, or parses "
    "nothing of its answers.",
    "Answers are too short (max_new_tokens), or prompts are of the wrong kind (chat).",
    "The experts change nothing in what the function asks, or it is too easy or too hard.",
)


CAUSES_OF_IMAGES = (
    "The classes are not in the order of the head's rows: give classes in the task's settings.",
    "The head belongs to another base, or the image processor to another model.",
    "The experts change nothing in these tasks, or all images are too easy or too hard.",
)


@dataclass(frozen=True)
class NoInformation:
    """That a run learned nothing, with one example to look at.

    :param sentence: what all scores are.
    :param causes: what usually causes it.
    :param task: the task of the example.
    :param example: its id.
    :param prompt: its prompt as the base gets it, with the chat template where the task has one.
    :param output: what the base writes after the prompt.
    :param expected: the right answer.
    """

    sentence: str
    causes: Sequence[str]
    task: str
    example: str
    prompt: str
    output: str
    expected: str


class FlatTask(NamedTuple):
    """A task in which all models have one score on dev, and one on test."""

    task: Task
    """With its dev examples."""
    dev: float
    test: float


def flat_tasks(
    rows: Sequence[ScoreRow],
    records: Sequence[dict],
    tasks: RunTasks,
    *,
    on_minibatches: bool = False,
) -> list[FlatTask]:
    """The tasks that say nothing about any model of a run.

    :param rows: of the final table.
    :param records: the history of the search.
    :param tasks: of the run.
    :param on_minibatches: whether the history has scores on minibatches. They agree where all
        examples have one score.
    """
    evaluated = list(dev_scores_by_point(records).values())
    if on_minibatches:
        evaluated += [record["tasks"] for record in records if record["score"] is not None]
    flat = []
    for task in tasks.dev:
        dev_scores = [row.dev[task.name] for row in rows]
        dev_scores += [scores[task.name] for scores in evaluated]
        dev = common_score(dev_scores)
        test = common_score([row.test[task.name] for row in rows])
        if dev is not None and test is not None:
            flat.append(FlatTask(task, dev, test))
    return flat


def common_score(scores: Sequence[float]) -> float | None:
    """The score that all have up to rounding, or None where two differ.

    A model without a score (NaN) does not count.
    """
    known = [score for score in scores if not math.isnan(score)]
    if not known or not all(math.isclose(score, known[0], rel_tol=ROUNDING) for score in known):
        return None
    return known[0]


def describe_flat_tasks(flat: Sequence[FlatTask]) -> list[str]:
    """A note for every task that says nothing about any model."""
    notes = []
    for task, dev, _ in flat:
        alike = f"base, experts and merges all score {dev:.3f} on dev"
        notes.append(f"task {sanitize(task.name)!r}: {alike}; the search learned nothing from it")
    return notes


def explain_no_information(flat: Sequence[FlatTask], model: ScoredModel) -> NoInformation:
    """What to tell the user of a run in which every task is flat.

    :param flat: the tasks, at least one.
    :param model: the base.
    """
    zeros = [found for found in flat if found.dev == found.test == 0]
    found = "every score 0" if len(zeros) == len(flat) else "equal scores in every task"
    expected = "expected differences between base, experts and merges"
    sentence = f"scores: {expected}, found {found}; the search learned nothing"
    with_examples = [found for found in flat if not isinstance(found.task, FitnessTask)]
    if not with_examples:
        return describe_function(flat[0], sentence)
    if isinstance(with_examples[0].task, ImageTask):
        return describe_images(with_examples[0].task, sentence)
    zeros = [found for found in zeros if found in with_examples]
    task = (zeros or with_examples)[0].task
    example = task.examples[0]
    model = reading_texts(model)
    (prompt,) = prompts_of(task, model, [Case(0, example)])
    return NoInformation(
        sentence=sentence,
        causes=CAUSES,
        task=task.name,
        example=example.id,
        prompt=str(model.tokenizer.decode(list(prompt))),
        output=_output(model, prompt, task),
        expected=gold_text(task, example),
    )


def describe_function(flat: FlatTask, sentence: str) -> NoInformation:
    """What to tell the user where all tasks are functions.

    :param flat: the first of them.
    :param sentence: what all scores are.
    """
    assert isinstance(flat.task, FitnessTask)
    return NoInformation(
        sentence=sentence,
        causes=CAUSES_OF_FUNCTIONS,
        task=flat.task.name,
        example="(all)",
        prompt=f"(prompts of the function {flat.task.source})",
        output=f"(scored {flat.dev:g} on dev and {flat.test:g} on test)",
        expected="(scores that differ between merges)",
    )


def describe_images(task: ImageTask, sentence: str) -> NoInformation:
    """What to tell the user where tasks are of images.

    :param task: the first of them.
    :param sentence: what all scores are.
    """
    return NoInformation(
        sentence=sentence,
        causes=CAUSES_OF_IMAGES,
        task=task.name,
        example=task.examples[0].id,
        prompt="(an image)",
        output="(a class)",
        expected=f"(class {task.examples[0].label})",
    )


def _output(model: LanguageModel, prompt: Sequence[int], task: Task) -> str:
    """What the base writes after a prompt, or why it writes nothing."""
    try:
        with ready_to_score(model.model):
            return model.generate([prompt], task.max_new_tokens)[0]
    except Exception as error:  # the run has its result all the same
        return f"({type(error).__name__}: {sanitize(str(error))})"
