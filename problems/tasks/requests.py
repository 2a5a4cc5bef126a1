"""What a task requests of a language model: prompts, right answers and choices, in tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from evox_evogm.problems.inference.derivatives import log_probabilities
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Request
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.tasks.check_tokens import TokenCheck, naming
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.task import Example, Task


class Case(NamedTuple):
    """An example for one candidate.

    :param candidate: whose answer is scored.
    :param example: the question.
    """

    candidate: int
    example: Example


def tokenize_task(task: Task, model: ScoredModel) -> int:
    """Make all tokens that scoring the task needs, and check that the base can take them.

    The model keeps them.

    :return: the number of tokens of all prompts.
    :raises ValueError: naming task and example, if a prompt or an answer has no token, if a base
        cannot take the tokens (`check_tokens.py`), or if its chat template cannot be used.
    """
    if isinstance(task, CustomTask):
        return task.tokenize(model)
    model = reading_texts(model)
    check = TokenCheck(task, model)
    tokens = 0
    for example in task.examples:
        with naming(task, example):
            prompt = model.prompt_tokens(example.prompt, chat=task.chat)
            requests = scored_requests(task, model, example)
        check.add(example, prompt, requests)
        tokens += len(prompt)
    check.finish()
    return tokens


def scored_requests(task: Task, model: LanguageModel, example: Example) -> list[Request]:
    """The prompts and answers whose likelihoods the metric needs, in tokens."""
    if task.metric == "choice_likelihood":
        return choice_requests(task, model, example)
    if task.metric == "gold_log_probability":
        return [answer_request(task, model, example)]
    if task.metric == "exact_match" and task.match == "equal":
        return [greedy_request(task, model, example)]
    return []


def cases_or_all(task: Task, cases: Sequence[Case] | None) -> Sequence[Case]:
    """The given cases, or all examples of the task for the first candidate."""
    if cases is not None:
        return cases
    return [Case(0, example) for example in task.examples]


def prompts_of(task: Task, model: ScoredModel, cases: Sequence[Case]) -> list[tuple[int, ...]]:
    """The prompt tokens of each case."""
    if isinstance(task, CustomTask):
        return task.prompts(model, cases)
    model = reading_texts(model)
    return [model.prompt_tokens(case.example.prompt, chat=task.chat) for case in cases]


def candidates_of(cases: Sequence[Case]) -> list[int]:
    """The candidate of each case."""
    return [case.candidate for case in cases]


def continuation_of(task: Task, key: str, text: str) -> str:
    """What the task scores of a choice: its key or its text."""
    return key if task.continuation == "key" else text


def gold_text(task: Task, example: Example) -> str:
    """The text of a right answer: the target, or the key or text of the right choice."""
    if not example.choices:
        return example.target
    return continuation_of(task, example.target, dict(example.choices)[example.target])


def answer_request(task: Task, model: LanguageModel, example: Example) -> Request:
    """The prompt of an example and its right answer, in tokens."""
    return model.request(example.prompt, gold_text(task, example), chat=task.chat)


def gold_request(task: Task, model: LanguageModel, example: Example) -> Request:
    """The prompt of an example, and its right answer with the end of the text, in tokens."""
    prompt, answer = answer_request(task, model, example)
    return prompt, (*answer, model.end_token)


def greedy_request(task: Task, model: LanguageModel, example: Example) -> Request:
    """The prompt that an answer is decoded from, and the right answer with the end of the text."""
    prompt = model.prompt_tokens(example.prompt, chat=task.chat)
    answer = model.prompts.reply(example.prompt, gold_text(task, example), chat=task.chat)
    return prompt, (*answer, model.end_token)


def requests_of(task: Task, model: ScoredModel) -> list[Request]:
    """The questions of a task with their right answers and the end of the text, in tokens.

    :raises ValueError: as `tokenize_task` does.
    """
    if isinstance(task, CustomTask):
        return task.gold_requests(model)
    model = reading_texts(model)
    check = TokenCheck(task, model)
    requests = []
    for example in task.examples:
        with naming(task, example):
            request = gold_request(task, model, example)
        check.add(example, request[0], [request])
        requests.append(request)
    check.finish()
    return requests


def write_answer_derivatives(
    task: Task, model: LanguageModel, cases: Sequence[Case], derivatives: torch.Tensor
) -> None:
    """Write the derivatives of the mean log-probability of each case's right answer.

    :param derivatives: an `(S, n g)` tensor on the CPU, by the coefficients.
    """
    requests = [answer_request(task, model, case.example) for case in cases]
    lengths = torch.tensor([len(answer) for _, answer in requests])
    found = model.likelihoods(requests, candidates_of(cases), log_probabilities)
    derivatives.copy_(found.derivatives / lengths[:, None])


def choice_requests(task: Task, model: LanguageModel, example: Example) -> list[Request]:
    """The prompt with what is scored of each choice, in tokens."""
    answers = [continuation_of(task, key, text) for key, text in example.choices]
    return model.prompts.requests(example.prompt, answers, chat=task.chat)
