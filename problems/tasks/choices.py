"""Two metrics of multiple choice: by the likelihood of every choice, and by a parsed answer."""

import re
from collections.abc import Mapping, Sequence

import torch

from evox_evogm.problems.inference.derivatives import log_probabilities
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Request
from evox_evogm.problems.tasks.generated import generated_answers
from evox_evogm.problems.tasks.margins import signed
from evox_evogm.problems.tasks.published import parse_published
from evox_evogm.problems.tasks.requests import (
    Case,
    candidates_of,
    cases_or_all,
    choice_requests,
    prompts_of,
    write_answer_derivatives,
)
from evox_evogm.problems.tasks.task import Example, Task

SHORT_OUTPUT = 100  # characters; ten new tokens stay below this


def choice_log_probabilities(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    derivatives: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Per case the summed log-probability in nats of each choice.

    :param derivatives: an `(S, n g)` tensor to write to, by the coefficients, of the lead of the
        right choice: its log-probability less the log of the summed probability of the others.
    """
    cases = cases_or_all(task, cases)
    requests = [choice_requests(task, model, case.example) for case in cases]
    candidates = candidates_of(cases)
    short: list[int] = []  # cases that one pass over the prompt scores
    long: list[int] = []
    for index, choices in enumerate(requests):
        (short if are_single_tokens(choices) else long).append(index)
    results = [torch.empty(0)] * len(cases)
    for indices, score in ((short, score_single_tokens), (long, score_long_choices)):
        if indices:
            some_requests = [requests[index] for index in indices]
            some_candidates = [candidates[index] for index in indices]
            gold = [place_of_gold(cases[index].example) for index in indices]
            if derivatives is None:
                found = score(model, some_requests, some_candidates, gold, None)
            else:
                some_derivatives = torch.zeros(len(indices), derivatives.shape[1])
                found = score(model, some_requests, some_candidates, gold, some_derivatives)
                derivatives[indices] = some_derivatives
            for index, scores in zip(indices, found, strict=True):
                results[index] = scores
    return results


def place_of_gold(example: Example) -> int:
    """The place of the right choice among the choices."""
    return [key for key, _ in example.choices].index(example.target)


def are_single_tokens(choices: Sequence[Request]) -> bool:
    """Whether all choices are one token behind the same prompt."""
    first_prompt, _ = choices[0]
    return all(len(choice) == 1 and prompt == first_prompt for prompt, choice in choices)


def score_single_tokens(
    model: LanguageModel,
    requests: Sequence[Sequence[Request]],
    candidates: Sequence[int],
    gold: Sequence[int],
    derivatives: torch.Tensor | None,
) -> Sequence[torch.Tensor]:
    """Log-probabilities of choices of one token: a pass over a prompt scores all its choices.

    :param requests: per case the prompt with each choice.
    :param gold: per case the place of the right choice.
    :param derivatives: see `choice_log_probabilities`.
    """
    prompts = []
    tokens = []
    for choices in requests:
        prompts.append(choices[0][0])
        tokens.append([choice[0] for _, choice in choices])
    return model.next_token_log_probabilities(prompts, tokens, candidates, gold, derivatives)


def score_long_choices(
    model: LanguageModel,
    requests: Sequence[Sequence[Request]],
    candidates: Sequence[int],
    gold: Sequence[int],
    derivatives: torch.Tensor | None,
) -> Sequence[torch.Tensor]:
    """Log-probabilities of choices of any length: a request for each choice.

    :param requests: per case the prompt with each choice.
    :param gold: per case the place of the right choice.
    :param derivatives: see `choice_log_probabilities`.
    """
    rows: list[Request] = []
    row_candidates: list[int] = []
    sizes = []
    for choices, candidate in zip(requests, candidates, strict=True):
        rows += choices
        row_candidates += [candidate] * len(choices)
        sizes.append(len(choices))
    value_of = None if derivatives is None else log_probabilities
    found = model.likelihoods(rows, row_candidates, value_of)
    scores = found.log_probability.split(sizes)
    if derivatives is not None:
        parts = found.derivatives.split(sizes)
        for case, (part, log_probs, place) in enumerate(zip(parts, scores, gold, strict=True)):
            derivatives[case] = lead_weights(log_probs, place).to(part) @ part
    return scores


def lead_weights(log_probabilities: torch.Tensor, gold: int) -> torch.Tensor:
    """The derivatives of a choice's lead by the log-probabilities `(C,)` of all choices.

    :param gold: the place of the right choice.
    """
    others = log_probabilities.clone()
    others[gold] = -torch.inf
    weights = -others.softmax(0).nan_to_num(0.0)  # NaN of a choice without others
    weights[gold] = 1.0
    return weights


def choice_likelihood(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
    derivatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 if the right choice has the largest log-probability. The margin is its lead in nats."""
    cases = cases_or_all(task, cases)
    right = torch.zeros(len(cases))
    for row, scores in enumerate(choice_log_probabilities(task, model, cases, derivatives)):
        example = cases[row].example
        keys = [key for key, _ in example.choices]
        right[row] = keys[int(scores.argmax())] == example.target
        if margins is not None:
            is_gold = torch.tensor([key == example.target for key in keys])
            others = scores[~is_gold].max() if len(keys) > 1 else torch.tensor(0.0)
            margins[row] = signed(scores[is_gold].max() - others, right[row])
    return right


def parse_choice(output: str, choices: Mapping[str, str]) -> str | None:
    """The key that a generated answer names, or None. The attempts, in the paper's order:

    1. An explicit "answer is X".
    2. A key in the first five characters.
    3. A key in the last five characters.
    4. In a short output, the text of a choice.

    A key counts only where it stands alone: the A of "An apple" is no answer.
    """
    keys = "|".join(re.escape(key) for key in choices)
    alone = rf"(?<!\w)({keys})(?!\w)"
    explicit = re.search(rf"(?i:answer is):?\W{{0,4}}{alone}", output)
    if explicit:
        return explicit[1]
    found = list(re.finditer(alone, output))
    if found and found[0].end() <= 5:
        return found[0][1]
    if found and found[-1].start() >= len(output) - 5:
        return found[-1][1]
    if len(output) > SHORT_OUTPUT:
        return None
    return longest_choice_in(output, choices)


def longest_choice_in(output: str, choices: Mapping[str, str]) -> str | None:
    """The key of the longest choice whose text stands in the output, in whatever case, or None.

    The longest, because "not a bird" contains "a bird".
    """
    named = []
    for key, text in choices.items():
        wanted = text.strip().lower()
        if wanted and wanted in output.lower():
            named.append(key)
    return max(named, key=lambda key: len(choices[key]), default=None)


def names_right_choice(task: Task, example: Example, output: str) -> bool:
    """Whether the key that the parser of the task's protocol finds in an answer is right."""
    parse = parse_choice if task.protocol == "ours" else parse_published
    return parse(output, dict(example.choices)) == example.target


def multiple_choice_generation(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
    derivatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 if the key parsed from the greedy answer is right. The margin is 1 or -1."""
    cases = cases_or_all(task, cases)
    prompts = prompts_of(task, model, cases)
    outputs = generated_answers(task, model, prompts, candidates_of(cases))
    right = torch.zeros(len(cases))
    for row, output in enumerate(outputs):
        right[row] = names_right_choice(task, cases[row].example, output)
    if margins is not None:
        margins.copy_(2 * right - 1)  # a text has no margin
    if derivatives is not None:
        write_answer_derivatives(task, model, cases, derivatives)
    return right
