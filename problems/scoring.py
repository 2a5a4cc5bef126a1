"""The scoring rules: each turns a task and a language model into one number per example, better when higher.

`choice_likelihood`            1 if the right choice has the largest summed log-probability, else 0; one forward pass.
`gold_log_probability`         mean log-probability in nats per token of the right answer; no ties, no parsing.
`exact_match`                  1 if the greedy answer agrees with the target (`Task.match`), else 0.
`multiple_choice_generation`   1 if the key parsed from ten greedy tokens is right: the rule of the EvoGM paper.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch

from evox_evogm.problems.language_model import LanguageModel
from evox_evogm.problems.tasks import RULES, Example, Task

Case = tuple[int, Example]  # the candidate that is asked, and what
SHORT_OUTPUT = 100  # characters; ten new tokens stay below this


def score_task(task: Task, model: LanguageModel) -> torch.Tensor:
    """Score every example of a task.

    :param task: S examples and a rule.
    :param model: the language model that answers.
    :return: an `(S,)` float32 tensor on the CPU, higher is better.
    """
    return SCORERS[task.rule](task, model)


def score_population(task: Task, model: LanguageModel, count: int) -> torch.Tensor:
    """Score every example of a task for several candidates, whose requests share batches.

    :param model: the language model, inside `model.candidates(...)`.
    :param count: P, the number of candidates.
    :return: a `(P, S)` float32 tensor on the CPU, higher is better.
    """
    cases = [(candidate, example) for candidate in range(count) for example in task.examples]
    return SCORERS[task.rule](task, model, cases).view(count, len(task.examples))


def _cases(task: Task, cases: Sequence[Case] | None) -> Sequence[Case]:
    return [(0, example) for example in task.examples] if cases is None else cases


def _prompts(task: Task, model: LanguageModel, cases: Sequence[Case]) -> list[tuple[int, ...]]:
    return [model.prompt_tokens(example.prompt, chat=task.chat) for _, example in cases]


def _candidates(cases: Sequence[Case]) -> list[int]:
    return [candidate for candidate, _ in cases]


def _continuation(task: Task, key: str, text: str) -> str:
    return key if task.continuation == "key" else text


def choice_log_probabilities(task: Task, model: LanguageModel, cases: Sequence[Case] | None = None) -> list[torch.Tensor]:
    """Per case the summed log-probability in nats of each choice."""
    cases = _cases(task, cases)
    prompts, candidates = _prompts(task, model, cases), _candidates(cases)
    choices = [
        [model.continuation_tokens(_continuation(task, *choice), chat=task.chat) for choice in example.choices]
        for _, example in cases
    ]
    if all(len(tokens) == 1 for row in choices for tokens in row):  # one pass over a prompt scores all its choices
        return model.next_token_log_probabilities(prompts, [[tokens[0] for tokens in row] for row in choices], candidates)
    requests = [(prompt, tokens) for prompt, row in zip(prompts, choices, strict=True) for tokens in row]
    asked = [candidate for candidate, row in zip(candidates, choices, strict=True) for _ in row]
    return list(model.likelihoods(requests, asked).log_probability.split([len(row) for row in choices]))


def choice_likelihood(task: Task, model: LanguageModel, cases: Sequence[Case] | None = None) -> torch.Tensor:
    cases = _cases(task, cases)
    right = [
        example.choices[int(scores.argmax())][0] == example.target
        for scores, (_, example) in zip(choice_log_probabilities(task, model, cases), cases, strict=True)
    ]
    return torch.tensor(right, dtype=torch.float32)


def gold_text(task: Task, example: Example) -> str:
    """What a right answer reads: the target, or the key or text of the right choice."""
    texts = dict(example.choices)
    return _continuation(task, example.target, texts[example.target]) if texts else example.target


def gold_log_probability(task: Task, model: LanguageModel, cases: Sequence[Case] | None = None) -> torch.Tensor:
    cases = _cases(task, cases)
    requests = [
        (prompt, model.continuation_tokens(gold_text(task, example), chat=task.chat))
        for prompt, (_, example) in zip(_prompts(task, model, cases), cases, strict=True)
    ]
    lengths = torch.tensor([len(continuation) for _, continuation in requests])
    return model.likelihoods(requests, _candidates(cases)).log_probability / lengths


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
        return not target.startswith(text) and bool(text.removeprefix(target).strip() or not text.startswith(target))
    return False


def generated_match(
    task: Task,
    model: LanguageModel,
    cases: Sequence[Case] | None = None,
    begun: Sequence[Sequence[int]] | None = None,
    *,
    to_the_end: bool = True,
) -> torch.Tensor:
    """`exact_match` the plain way: decode every answer and compare the texts.

    :param begun: for each case the first tokens of its answer, where they are known.
    :param to_the_end: decode answers to their end even if the score is decided before.
    """
    cases = _cases(task, cases)
    targets = [gold_text(task, example) for _, example in cases]
    enough = None if to_the_end else lambda row, text: decided(text, targets[row], task.match)
    outputs = model.generate(_prompts(task, model, cases), task.max_new_tokens, _candidates(cases), enough, begun)
    right = [agrees(output, target, task.match) for output, target in zip(outputs, targets, strict=True)]
    return torch.tensor(right, dtype=torch.float32)


def exact_match(task: Task, model: LanguageModel, cases: Sequence[Case] | None = None) -> torch.Tensor:
    """`exact_match` with one forward pass where that decides it.

    Greedy decoding yields the target's tokens and then stops if and only if each of them is the arg-max after the
    prompt and the ones before it. Where a different token comes first, the answer can still read the same only if the
    text so far is a beginning of the target (another way to cut it into tokens); those few are decoded, as far as needed.
    """
    cases = _cases(task, cases)
    if task.match != "equal":
        return generated_match(task, model, cases, to_the_end=False)
    requests = [
        (prompt, (*model.continuation_tokens(gold_text(task, example), chat=task.chat), model.end_token))
        for prompt, (_, example) in zip(_prompts(task, model, cases), cases, strict=True)
    ]
    result = model.likelihoods(requests, _candidates(cases))
    right = torch.zeros(len(requests))
    begun: dict[int, tuple[int, ...]] = {}  # the rows that are still open, and the tokens that their answers begin with
    for row, ((_, gold), (_, example)) in enumerate(zip(requests, cases, strict=True)):
        miss = int(result.first_miss[row])
        if len(gold) > task.max_new_tokens:
            begun[row] = ()  # the forward pass looks further than the decoding may go
        elif miss == len(gold):
            right[row] = 1.0
        elif (missed := int(result.missed_token[row])) in model.end_tokens:
            right[row] = float(agrees(model.decode(gold[:miss]), gold_text(task, example), task.match))
        else:
            text = model.decode([*gold[:miss], missed]).strip()
            if "\ufffd" in text or gold_text(task, example).strip().startswith(text):
                begun[row] = (*gold[:miss], missed)
    if begun:
        rows = list(begun)
        right[rows] = generated_match(task, model, [cases[row] for row in rows], list(begun.values()), to_the_end=False)
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
        named = [key for key, text in choices.items() if text.strip() and text.strip().lower() in output.lower()]
        if named:
            return max(named, key=lambda key: len(choices[key]))  # "not a bird" contains "a bird"
    return None


def multiple_choice_generation(task: Task, model: LanguageModel, cases: Sequence[Case] | None = None) -> torch.Tensor:
    cases = _cases(task, cases)
    outputs = model.generate(_prompts(task, model, cases), task.max_new_tokens, _candidates(cases))
    right = [
        parse_choice(output, dict(example.choices)) == example.target
        for output, (_, example) in zip(outputs, cases, strict=True)
    ]
    return torch.tensor(right, dtype=torch.float32)


SCORERS: dict[str, Callable[..., torch.Tensor]] = {
    "choice_likelihood": choice_likelihood,
    "gold_log_probability": gold_log_probability,
    "exact_match": exact_match,
    "multiple_choice_generation": multiple_choice_generation,
}
assert set(SCORERS) == set(RULES)
