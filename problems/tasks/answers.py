"""What a model answers, to be read: a text or a choice for each example."""

from dataclasses import replace
from typing import NamedTuple

import torch

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.choices import choice_log_probabilities
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.exact_match import agrees
from evox_evogm.problems.tasks.generated import generated_answers
from evox_evogm.problems.tasks.requests import candidates_of, cases_or_all, gold_text, prompts_of
from evox_evogm.problems.tasks.task import Task


class Answer(NamedTuple):
    """What a model answers to an example.

    :param text: the greedy continuation, or the key and the text of the chosen choice.
    :param share: of the chosen choice, its probability among the choices; None of a text.
    :param right: whether it is right, where that can be read off it, else None.
    """

    text: str
    share: float | None = None
    right: bool | None = None


def answers_of(task: Task, model: LanguageModel, most_tokens: int) -> list[Answer]:
    """The answer to every example of a task.

    :param task: S examples.
    :param model: the language model.
    :param most_tokens: the length of generated answers, if `task.max_new_tokens` is no shorter.
    """
    if task.metric == "choice_likelihood":
        return _chosen(task, model)
    cases = cases_or_all(task, None)
    short = replace(task, max_new_tokens=min(most_tokens, task.max_new_tokens))
    prompts = prompts_of(task, model, cases)
    texts = generated_answers(short, model, prompts, candidates_of(cases))
    is_whole = task.metric == "exact_match" and most_tokens >= task.max_new_tokens
    if not is_whole or isinstance(task, CustomTask):
        return [Answer(text) for text in texts]
    answers = []
    for text, example in zip(texts, task.examples, strict=True):
        right = agrees(text, gold_text(task, example), task.match)
        answers.append(Answer(text, right=right))
    return answers


def _chosen(task: Task, model: LanguageModel) -> list[Answer]:
    answers = []
    found = choice_log_probabilities(task, model)
    for example, log_probabilities in zip(task.examples, found, strict=True):
        place = int(log_probabilities.argmax())
        share = float(torch.softmax(log_probabilities.double(), 0)[place])
        key, text = example.choices[place]
        answers.append(Answer(f"{key}: {text}", share, key == example.target))
    return answers
