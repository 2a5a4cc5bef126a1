"""The scoring rules: each turns a task and a language model into one number per example, better when higher.

`choice_likelihood`            1 if the right choice has the largest summed log-probability, else 0; one forward pass.
`gold_log_probability`         mean log-probability in nats per token of the right answer; no ties, no parsing.
`exact_match`                  1 if the greedy answer agrees with the target (`Task.match`), else 0.
`multiple_choice_generation`   1 if the key parsed from ten greedy tokens is right: the rule of the EvoGM paper.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch

from evox_evogm.problems.inference.language_model import LanguageModel, Request
from evox_evogm.problems.inference.prefix_cache import LEAST_SAVING, common_prefix
from evox_evogm.problems.tasks.task import METRIC_NAMES, Example, Task

Case = tuple[int, Example]  # the candidate that is asked, and what
SHORT_OUTPUT = 100  # characters; ten new tokens stay below this


def tokenize_task(task: Task, model: LanguageModel) -> int:
    """Make the tokens of everything that the task will ask, which the model keeps.

    :return: the tokens of all prompts.
    :raises ValueError: if a prompt or an answer has none, or the tokenizer lacks the chat template that the task wants.
    """
    for example in task.examples:
        if task.metric == "choice_likelihood":
            answers = [_continuation(task, *choice) for choice in example.choices]
        else:
            forward = task.metric == "gold_log_probability" or (
                task.metric == "exact_match" and task.match == "equal"
            )
            answers = [gold_text(task, example)] if forward else []
        for answer in answers:
            model.continuation_tokens(answer, chat=task.chat)
    return sum(
        len(model.prompt_tokens(example.prompt, chat=task.chat)) for example in task.examples
    )


def score_task(
    task: Task, model: LanguageModel, margins: torch.Tensor | None = None
) -> torch.Tensor:
    """Score every example of a task.

    :param task: S examples and a rule.
    :param model: the language model that answers.
    :param margins: an `(S,)` tensor on the CPU to write to: what the rule compares, see `METRICS_BY_SIGN`.
    :return: an `(S,)` float32 tensor on the CPU, higher is better.
    """
    return METRICS[task.metric](task, model, margins=margins)


def score_tasks(
    tasks: Sequence[Task], model: LanguageModel, count: int, margins: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Score every example of some tasks for several candidates, whose requests share batches.

    Tasks that are asked in the same way share them too: fewer and fuller passes, in which rows of one length find each other.

    :param model: the language model, inside `model.candidates(...)` if there are several.
    :param count: P, the number of candidates.
    :param margins: by the name of every task a `(P, S)` tensor on the CPU to write to, as in `score_task`.
    :return: by the name of every task a `(P, S)` float32 tensor on the CPU, higher is better.
    """
    scores: dict[str, torch.Tensor] = {}
    for group in asked_together(tasks, model):
        cases = [
            (candidate, example)
            for candidate in range(count)
            for task in group
            for example in task.examples
        ]
        group_margins = torch.zeros(len(cases))
        found = METRICS[group[0].metric](group[0], model, cases, margins=group_margins)
        sizes = [len(task.examples) for task in group]
        by_task = (values.view(count, -1).split(sizes, 1) for values in (found, group_margins))
        for task, task_scores, task_margins in zip(group, *by_task, strict=True):
            scores[task.name] = task_scores
            margins[task.name].copy_(task_margins)
    return scores


def asked_together(tasks: Sequence[Task], model: LanguageModel) -> list[list[Task]]:
    """The tasks in groups that share batches: their examples are asked in the same way.

    A task whose prompts begin alike is better off alone, where that beginning runs once.
    """
    groups: dict[tuple, list[Task]] = {}
    for task in tasks:
        way = (
            task.metric,
            task.match,
            task.continuation,
            task.chat,
            task.max_new_tokens,
            shared_start(task, model),
        )
        groups.setdefault(way, []).append(task)
    return list(groups.values())


def shared_start(task: Task, model: LanguageModel) -> tuple[int, ...]:
    """The tokens that all prompts of a task begin with; none if a pass of their own would save too little."""
    prompts = [model.prompt_tokens(example.prompt, chat=task.chat) for example in task.examples]
    length = common_prefix(prompts)
    return (
        prompts[0][:length]
        if (len(prompts) - 1) * length > LEAST_SAVING * sum(map(len, prompts))
        else ()
    )


def _cases(task: Task, cases: Sequence[Case] | None) -> Sequence[Case]:
    return [(0, example) for example in task.examples] if cases is None else cases


def _prompts(task: Task, model: LanguageModel, cases: Sequence[Case]) -> list[tuple[int, ...]]:
    return [model.prompt_tokens(example.prompt, chat=task.chat) for _, example in cases]


def _candidates(cases: Sequence[Case]) -> list[int]:
    return [candidate for candidate, _ in cases]


def _continuation(task: Task, key: str, text: str) -> str:
    return key if task.continuation == "key" else text


def choice_log_probabilities(
    task: Task, model: LanguageModel, cases: Sequence[Case] | None = None
) -> list[torch.Tensor]:
    """Per case the summed log-probability in nats of each choice."""
    cases = _cases(task, cases)
    prompts, candidates = _prompts(task, model, cases), _candidates(cases)
    choices = [
        [
            model.continuation_tokens(_continuation(task, *choice), chat=task.chat)
            for choice in example.choices
        ]
        for _, example in cases
    ]
    results: dict[int, torch.Tensor] = {}
    short = [index for index, row in enumerate(choices) if all(len(tokens) == 1 for tokens in row)]
    if short:  # one pass over a prompt scores all its choices
        tokens = [[choice[0] for choice in choices[index]] for index in short]
        asked = [candidates[index] for index in short]
        found = model.next_token_log_probabilities(
            [prompts[index] for index in short], tokens, asked
        )
        results |= zip(short, found, strict=True)
    if long := [index for index in range(len(cases)) if index not in results]:
        requests = [(prompts[index], tokens) for index in long for tokens in choices[index]]
        asked = [candidates[index] for index in long for _ in choices[index]]
        found = model.likelihoods(requests, asked).log_probability.split(
            [len(choices[index]) for index in long]
        )
        results |= zip(long, found, strict=True)
    return [results[index] for index in range(len(cases))]


def choice_likelihood(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    cases = _cases(task, cases)
    right = torch.zeros(len(cases))
    for row, (scores, (_, example)) in enumerate(
        zip(choice_log_probabilities(task, model, cases), cases, strict=True)
    ):
        keys = [key for key, _ in example.choices]
        right[row] = keys[int(scores.argmax())] == example.target
        if margins is not None:
            gold = torch.tensor([key == example.target for key in keys])
            others = scores[~gold].max() if len(keys) > 1 else torch.tensor(0.0)
            margins[row] = signed(scores[gold].max() - others, right[row])
    return right


def signed(size: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A margin with the sign that its score has: ties and other ways to be right are decided elsewhere."""
    return torch.where(right > 0.5, size.abs().clamp_min(1e-6), -size.abs())


def gold_text(task: Task, example: Example) -> str:
    """What a right answer reads: the target, or the key or text of the right choice."""
    texts = dict(example.choices)
    return _continuation(task, example.target, texts[example.target]) if texts else example.target


def requests_of(task: Task, model: LanguageModel) -> list[Request]:
    """The questions of a task with their right answers and the end of the text, in tokens."""
    return [
        (
            model.prompt_tokens(example.prompt, chat=task.chat),
            (*model.continuation_tokens(gold_text(task, example), chat=task.chat), model.end_token),
        )
        for example in task.examples
    ]


def gold_log_probability(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    cases = _cases(task, cases)
    requests = [
        (prompt, model.continuation_tokens(gold_text(task, example), chat=task.chat))
        for prompt, (_, example) in zip(_prompts(task, model, cases), cases, strict=True)
    ]
    lengths = torch.tensor([len(continuation) for _, continuation in requests])
    scores = model.likelihoods(requests, _candidates(cases)).log_probability / lengths
    if margins is not None:
        margins.copy_(scores)
    return scores


def agrees(output: str, target: str, match: str) -> bool:
    """Whether a generated text counts as the target under `Task.match`."""
    if match == "equal":
        return output.strip() == target.strip()
    return target in (output if match == "contains" else " ".join(output.split(" ")[-10:]))


def decided(text: str, target: str, match: str) -> bool:
    """Whether a text that goes on is sure to agree with the target, or sure not to, whatever follows."""
    if match == "contains":
        return target in text
    if match == "equal" and not text.endswith("\ufffd"):  # half a letter may become another one
        text, target = text.lstrip(), target.strip()
        return not target.startswith(text) and bool(
            text.removeprefix(target).strip() or not text.startswith(target)
        )
    return False


def generated_match(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    begun: Sequence[Sequence[int]] | None = None,
    *,
    to_the_end: bool = True,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    """`exact_match` the plain way: decode every answer and compare the texts.

    :param begun: for each case the first tokens of its answer, where they are known.
    :param to_the_end: decode answers to their end even if the score is decided before.
    """
    cases = _cases(task, cases)
    targets = [gold_text(task, example) for _, example in cases]
    enough = None if to_the_end else lambda row, text: decided(text, targets[row], task.match)
    outputs = model.generate(
        _prompts(task, model, cases), task.max_new_tokens, _candidates(cases), enough, begun
    )
    found = zip(outputs, targets, strict=True)
    right = torch.tensor(
        [agrees(output, target, task.match) for output, target in found], dtype=torch.float32
    )
    if margins is not None:
        margins.copy_(2 * right - 1)  # a text has no margin
    return right


def exact_match(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    """`exact_match` with one forward pass where that decides it.

    Greedy decoding yields the target's tokens and then stops if and only if each of them is the arg-max after the
    prompt and the ones before it. Where a different token comes first, the answer can still read the same only if the
    text so far is a beginning of the target (another way to cut it into tokens); those few are decoded, as far as needed.
    """
    cases = _cases(task, cases)
    if task.match != "equal":
        return generated_match(task, model, cases, to_the_end=False, margins=margins)
    requests = [
        (
            prompt,
            (*model.continuation_tokens(gold_text(task, example), chat=task.chat), model.end_token),
        )
        for prompt, (_, example) in zip(_prompts(task, model, cases), cases, strict=True)
    ]
    result = model.likelihoods(requests, _candidates(cases))
    right = torch.zeros(len(requests))
    begun: dict[
        int, tuple[int, ...]
    ] = {}  # the rows that are still open, and the tokens that their answers begin with
    for row, ((_, gold), (_, example)) in enumerate(zip(requests, cases, strict=True)):
        miss = int(result.first_miss[row])
        if len(gold) > task.max_new_tokens:
            begun[row] = ()  # the forward pass looks further than the decoding may go
        elif miss == len(gold):
            right[row] = 1.0
        elif (missed := int(result.missed_token[row])) in model.end_tokens:
            right[row] = float(
                agrees(model.decode_and_keep(gold[:miss]), gold_text(task, example), task.match)
            )
        else:
            text = model.decode_and_keep((*gold[:miss], missed)).strip()
            if "\ufffd" in text or gold_text(task, example).strip().startswith(text):
                begun[row] = (*gold[:miss], missed)
    if begun:
        rows = list(begun)
        right[rows] = generated_match(
            task, model, [cases[row] for row in rows], list(begun.values()), to_the_end=False
        )
    if margins is not None:
        margins.copy_(signed(result.margin, right))
    return right


def parse_choice(output: str, choices: Mapping[str, str]) -> str | None:
    """The key that a generated answer names, by the paper's order of attempts, or None.

    An explicit "answer is X"; a key in the first five characters; a key in the last five; in a short output, the text
    of a choice. A key counts only where it stands alone: the A of "An apple" is no answer.
    """
    alone = rf"(?<!\w)({'|'.join(re.escape(key) for key in choices)})(?!\w)"
    if explicit := re.search(rf"(?i:answer is):?\W{{0,4}}{alone}", output):
        return explicit[1]
    found = list(re.finditer(alone, output))
    if found and found[0].end() <= 5:
        return found[0][1]
    if found and found[-1].start() >= len(output) - 5:
        return found[-1][1]
    if len(output) <= SHORT_OUTPUT:
        named = [
            key
            for key, text in choices.items()
            if text.strip() and text.strip().lower() in output.lower()
        ]
        if named:
            return max(named, key=lambda key: len(choices[key]))  # "not a bird" contains "a bird"
    return None


def multiple_choice_generation(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    *,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    cases = _cases(task, cases)
    outputs = model.generate(_prompts(task, model, cases), task.max_new_tokens, _candidates(cases))
    found = zip(outputs, cases, strict=True)
    right = torch.tensor(
        [parse_choice(output, dict(e.choices)) == e.target for output, (_, e) in found],
        dtype=torch.float32,
    )
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

# The margin of a score of 0 or 1 is above 0 if and only if it is 1: how far the right answer is ahead of the others, in
# logits or nats. Elsewhere it is the score.
METRICS_BY_SIGN = frozenset(METRIC_NAMES) - {"gold_log_probability"}


def outcomes_of(tasks: Sequence[Task]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the margins of all examples, one task after another, contribute to the mean over tasks.

    :return: two `(S,)` tensors: the weight of each, and whether it counts by being above 0.
    """
    weights = [1 / (len(tasks) * len(task.examples)) for task in tasks for _ in task.examples]
    by_sign = [task.metric in METRICS_BY_SIGN for task in tasks for _ in task.examples]
    return torch.tensor(weights), torch.tensor(by_sign)
