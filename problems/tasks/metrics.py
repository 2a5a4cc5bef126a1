"""The metrics: each turns a task and a language model into one number per example, better when
higher.

| metric | score of an example |
| --- | --- |
| `choice_likelihood` | 1 if the right choice has the largest summed log-probability, else 0 |
| `gold_log_probability` | mean log-probability in nats per token of the right answer |
| `exact_match` | 1 if the greedy answer agrees with the target (`Task.match`), else 0 |
| `multiple_choice_generation` | 1 if the key parsed from the greedy answer is right, else 0 |

The first two need forward passes over prompts only. The third decodes where such a pass does not
decide the score. The last is the EvoGM paper's (arXiv 2605.29295), with ten new tokens.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prefix_cache import LEAST_SAVING, common_prefix
from evox_evogm.problems.inference.prompts import Request
from evox_evogm.problems.tasks.check_tokens import TokenCheck, naming
from evox_evogm.problems.tasks.task import METRIC_NAMES, Example, Task

SHORT_OUTPUT = 100  # characters; ten new tokens stay below this
HALF_CHARACTER = "\ufffd"  # what the tokenizer writes for bytes that are no whole character
LEAST_MARGIN = 1e-6  # of a right answer, whose margin has to be above 0


class Case(NamedTuple):
    """An example for one candidate.

    :param candidate: whose answer is scored.
    :param example: the question.
    """

    candidate: int
    example: Example


def tokenize_task(task: Task, model: LanguageModel) -> int:
    """Make all tokens that scoring the task needs, and check that the base can take them.

    The model keeps them.

    :return: the number of tokens of all prompts.
    :raises ValueError: naming task and example, if a prompt or an answer has no token, if a base
        cannot take the tokens (`check_tokens.py`), or if its chat template cannot be used.
    """
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


def score_task(
    task: Task, model: LanguageModel, margins: torch.Tensor | None = None
) -> torch.Tensor:
    """Score every example of a task.

    :param task: S examples and a metric.
    :param model: the language model.
    :param margins: an `(S,)` tensor on the CPU to write the margins to, see `METRICS_BY_SIGN`.
    :return: an `(S,)` float32 tensor on the CPU, higher is better.
    """
    return METRICS[task.metric](task, model, margins=margins)


def score_tasks(
    tasks: Sequence[Task], model: LanguageModel, count: int, margins: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Score every example of some tasks for several candidates, whose requests share batches.

    Tasks of the same form share them too. This makes fewer and fuller passes, with more rows of the
    same length.

    :param model: the language model, inside `model.candidates(...)` if there are several.
    :param count: P, the number of candidates.
    :param margins: by task name a `(P, S)` tensor on the CPU to write to, as in `score_task`.
    :return: by task name a `(P, S)` float32 tensor on the CPU, higher is better.
    """
    scores: dict[str, torch.Tensor] = {}
    for group in group_tasks(tasks, model):
        cases = []
        for candidate in range(count):
            for task in group:
                cases += [Case(candidate, example) for example in task.examples]
        group_margins = torch.zeros(len(cases))
        metric = METRICS[group[0].metric]
        group_scores = metric(group[0], model, cases, margins=group_margins)
        sizes = [len(task.examples) for task in group]
        scores_by_task = group_scores.view(count, -1).split(sizes, 1)  # (P, S) each
        margins_by_task = group_margins.view(count, -1).split(sizes, 1)
        for index, task in enumerate(group):
            scores[task.name] = scores_by_task[index]
            margins[task.name].copy_(margins_by_task[index])
    return scores


def group_tasks(tasks: Sequence[Task], model: LanguageModel) -> list[list[Task]]:
    """Groups of tasks that share batches: they agree in all settings of the metric.

    A task whose prompts have a long common prefix stays alone, so that the prefix runs once.
    """
    groups: dict[tuple, list[Task]] = {}
    for task in tasks:
        form = (
            task.metric,
            task.match,
            task.continuation,
            task.chat,
            task.max_new_tokens,
            shared_prompt_prefix(task, model),
        )
        groups.setdefault(form, []).append(task)
    return list(groups.values())


def shared_prompt_prefix(task: Task, model: LanguageModel) -> tuple[int, ...]:
    """The tokens that all prompts of a task begin with.

    Empty if a pass of their own would save less than `LEAST_SAVING` of the tokens.
    """
    prompts = [model.prompt_tokens(example.prompt, chat=task.chat) for example in task.examples]
    length = common_prefix(prompts)
    saved = (len(prompts) - 1) * length
    total = sum(len(prompt) for prompt in prompts)
    if saved > LEAST_SAVING * total:
        return prompts[0][:length]
    return ()


def cases_or_all(task: Task, cases: Sequence[Case] | None) -> Sequence[Case]:
    """The given cases, or all examples of the task for the first candidate."""
    if cases is not None:
        return cases
    return [Case(0, example) for example in task.examples]


def prompts_of(task: Task, model: LanguageModel, cases: Sequence[Case]) -> list[tuple[int, ...]]:
    """The prompt tokens of each case."""
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


def requests_of(task: Task, model: LanguageModel) -> list[Request]:
    """The questions of a task with their right answers and the end of the text, in tokens.

    :raises ValueError: as `tokenize_task` does.
    """
    check = TokenCheck(task, model)
    requests = []
    for example in task.examples:
        with naming(task, example):
            request = gold_request(task, model, example)
        check.add(example, request[0], [request])
        requests.append(request)
    check.finish()
    return requests


def choice_requests(task: Task, model: LanguageModel, example: Example) -> list[Request]:
    """The prompt with what is scored of each choice, in tokens."""
    answers = [continuation_of(task, key, text) for key, text in example.choices]
    return model.prompts.requests(example.prompt, answers, chat=task.chat)


def choice_log_probabilities(
    task: Task, model: LanguageModel, cases: Sequence[Case] | None = None
) -> list[torch.Tensor]:
    """Per case the summed log-probability in nats of each choice."""
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
            found = score(model, some_requests, some_candidates)
            for index, scores in zip(indices, found, strict=True):
                results[index] = scores
    return results


def are_single_tokens(choices: Sequence[Request]) -> bool:
    """Whether all choices are one token behind the same prompt."""
    first_prompt, _ = choices[0]
    return all(len(choice) == 1 and prompt == first_prompt for prompt, choice in choices)


def score_single_tokens(
    model: LanguageModel, requests: Sequence[Sequence[Request]], candidates: Sequence[int]
) -> Sequence[torch.Tensor]:
    """Log-probabilities of choices of one token: a pass over a prompt scores all its choices.

    :param requests: per case the prompt with each choice.
    """
    prompts = []
    tokens = []
    for choices in requests:
        prompts.append(choices[0][0])
        tokens.append([choice[0] for _, choice in choices])
    return model.next_token_log_probabilities(prompts, tokens, candidates)


def score_long_choices(
    model: LanguageModel, requests: Sequence[Sequence[Request]], candidates: Sequence[int]
) -> Sequence[torch.Tensor]:
    """Log-probabilities of choices of any length: a request for each choice.

    :param requests: per case the prompt with each choice.
    """
    rows: list[Request] = []
    row_candidates: list[int] = []
    sizes = []
    for choices, candidate in zip(requests, candidates, strict=True):
        rows += choices
        row_candidates += [candidate] * len(choices)
        sizes.append(len(choices))
    return model.likelihoods(rows, row_candidates).log_probability.split(sizes)


def choice_likelihood(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 if the right choice has the largest log-probability. The margin is its lead in nats."""
    cases = cases_or_all(task, cases)
    right = torch.zeros(len(cases))
    for row, scores in enumerate(choice_log_probabilities(task, model, cases)):
        example = cases[row].example
        keys = [key for key, _ in example.choices]
        right[row] = keys[int(scores.argmax())] == example.target
        if margins is not None:
            is_gold = torch.tensor([key == example.target for key in keys])
            others = scores[~is_gold].max() if len(keys) > 1 else torch.tensor(0.0)
            margins[row] = signed(scores[is_gold].max() - others, right[row])
    return right


def signed(size: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Margins with the sign that their scores have.

    Ties, and texts that are right in other tokens than the target's, are decided elsewhere.

    :param size: margins whose sign may differ.
    :param right: scores of 0 or 1, of the same shape.
    """
    return torch.where(right > 0.5, size.abs().clamp_min(LEAST_MARGIN), -size.abs())


def gold_log_probability(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean log-probability in nats per token of the right answer, which is also the margin."""
    cases = cases_or_all(task, cases)
    requests = [answer_request(task, model, case.example) for case in cases]
    lengths = torch.tensor([len(answer) for _, answer in requests])
    scores = model.likelihoods(requests, candidates_of(cases)).log_probability / lengths
    if margins is not None:
        margins.copy_(scores)
    return scores


def agrees(output: str, target: str, match: str) -> bool:
    """Whether a generated text counts as the target under `Task.match`."""
    if match == "equal":
        return output.strip() == target.strip()
    if match == "contains":
        return target in output
    return target in " ".join(output.split(" ")[-10:])


def is_decided(text: str, target: str, match: str) -> bool:
    """Whether nothing that may follow a text can change its score."""
    if match == "contains":
        return target in text
    if match == "last_10_words" or text.endswith(HALF_CHARACTER) or HALF_CHARACTER in target:
        return False  # bytes that follow may turn earlier ones into half characters
    text = text.lstrip()
    target = target.strip()
    if target.startswith(text):
        return False
    goes_beyond = bool(text.removeprefix(target).strip())
    return goes_beyond or not text.startswith(target)


def generated_match(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    forced_tokens: Sequence[Sequence[int]] | None = None,
    *,
    stop_early: bool = False,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    """`exact_match` the plain way: decode every answer and compare the texts.

    :param forced_tokens: for each case the first tokens of its answer, where they are known.
    :param stop_early: stop decoding an answer once its score is decided.
    """
    cases = cases_or_all(task, cases)
    targets = [gold_text(task, case.example) for case in cases]

    def should_stop(row: int, text: str) -> bool:
        return is_decided(text, targets[row], task.match)

    outputs = model.generate(
        prompts_of(task, model, cases),
        task.max_new_tokens,
        candidates_of(cases),
        should_stop if stop_early else None,
        forced_tokens,
    )
    right = torch.zeros(len(cases))
    for row, (output, target) in enumerate(zip(outputs, targets, strict=True)):
        right[row] = agrees(output, target, task.match)
    if margins is not None:
        margins.copy_(2 * right - 1)  # a text has no margin
    return right


class PassVerdict(NamedTuple):
    """What one forward pass over a question and its target says of the greedy answer.

    :param score: 0 or 1; None if the answer has to be decoded.
    :param first_tokens: the tokens that an answer to decode begins with.
    """

    score: float | None
    first_tokens: tuple[int, ...] = ()


def judge_by_pass(
    task: Task, model: LanguageModel, example: Example, first_miss: int, missed_token: int
) -> PassVerdict:
    """The score of an exact match as far as a forward pass decides it.

    :param first_miss: the index of the first token of the target that greedy decoding would not
        choose.
    :param missed_token: what it would choose there.
    """
    _, gold = greedy_request(task, model, example)
    target = gold_text(task, example)
    if len(gold) > task.max_new_tokens:  # decoding stops before the end of the target
        return PassVerdict(None)
    # A tokenizer may lose something of the target, such as capitals, which no answer has then.
    if first_miss == len(gold) or missed_token in model.end_tokens:
        text = model.prompts.decode_and_keep(gold[: min(first_miss, len(gold) - 1)])
        return PassVerdict(float(agrees(text, target, task.match)))
    answer = (*gold[:first_miss], missed_token)
    if HALF_CHARACTER in target:  # bytes that follow may turn earlier ones into half characters
        return PassVerdict(None, answer)
    text = model.prompts.decode_and_keep(answer).strip()
    if HALF_CHARACTER in text or target.strip().startswith(text):
        return PassVerdict(None, answer)
    return PassVerdict(0.0)


def exact_match(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 if the greedy answer agrees with the target, by one forward pass where that decides it.

    Greedy decoding yields the target's tokens and then stops if and only if each of them is the
    arg-max after the ones before it. Where another token comes first, the answer can still read the
    same: the text so far is a beginning of the target, cut into other tokens. Those few answers are
    decoded, as far as needed.

    The margin is the least lead of a token of the target, in logits.
    """
    cases = cases_or_all(task, cases)
    if task.match != "equal":
        return generated_match(task, model, cases, stop_early=True, margins=margins)
    requests = [greedy_request(task, model, case.example) for case in cases]
    likelihoods = model.likelihoods(requests, candidates_of(cases))
    first_misses = likelihoods.first_miss.tolist()
    missed_tokens = likelihoods.missed_token.tolist()
    right = torch.zeros(len(cases))
    undecided: list[int] = []
    forced_tokens: list[tuple[int, ...]] = []
    for row, case in enumerate(cases):
        verdict = judge_by_pass(task, model, case.example, first_misses[row], missed_tokens[row])
        if verdict.score is None:
            undecided.append(row)
            forced_tokens.append(verdict.first_tokens)
        else:
            right[row] = verdict.score
    if undecided:
        undecided_cases = [cases[row] for row in undecided]
        right[undecided] = generated_match(
            task, model, undecided_cases, forced_tokens, stop_early=True
        )
    if margins is not None:
        margins.copy_(signed(likelihoods.margin, right))
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


def multiple_choice_generation(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 if the key parsed from the greedy answer is right. The margin is 1 or -1."""
    cases = cases_or_all(task, cases)
    prompts = prompts_of(task, model, cases)
    outputs = model.generate(prompts, task.max_new_tokens, candidates_of(cases))
    right = torch.zeros(len(cases))
    for row, output in enumerate(outputs):
        example = cases[row].example
        right[row] = parse_choice(output, dict(example.choices)) == example.target
    if margins is not None:
        margins.copy_(2 * right - 1)  # a text has no margin
    return right


METRICS: dict[str, Callable[..., torch.Tensor]] = {
    "choice_likelihood": choice_likelihood,
    "gold_log_probability": gold_log_probability,
    "exact_match": exact_match,
    "multiple_choice_generation": multiple_choice_generation,
}
assert set(METRICS) == set(METRIC_NAMES)

# Metrics of 0 or 1. Their margin is above 0 if and only if the score is 1: how far the right answer
# is ahead of the others, in logits or nats. The margin of the other metric is its score.
METRICS_BY_SIGN = frozenset(METRIC_NAMES) - {"gold_log_probability"}


def outcomes_of(tasks: Sequence[Task]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How the margins of all examples, one task after another, count in the mean over tasks.

    :return: three `(S,)` tensors: the weight of each margin, whether it counts by being above 0,
        and the number of its task, whose margins have one unit.
    """
    weights = []
    by_sign = []
    groups = []
    for number, task in enumerate(tasks):
        size = len(task.examples)
        weights += [1 / (len(tasks) * size)] * size
        by_sign += [task.metric in METRICS_BY_SIGN] * size
        groups += [number] * size
    return (
        torch.tensor(weights, dtype=torch.float32),
        torch.tensor(by_sign),
        torch.tensor(groups),
    )
