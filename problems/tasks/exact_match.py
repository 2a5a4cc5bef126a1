"""The metric `exact_match`: the greedy answer agrees with the target."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from evox_evogm.problems.inference.derivatives import soft_margins
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.stop_texts import HALF_CHARACTER, may_stop_after
from evox_evogm.problems.tasks.generated import generated_answers
from evox_evogm.problems.tasks.margins import signed
from evox_evogm.problems.tasks.requests import (
    Case,
    candidates_of,
    cases_or_all,
    gold_text,
    greedy_request,
    prompts_of,
    write_answer_derivatives,
)
from evox_evogm.problems.tasks.task import Example, Task


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
    derivatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """`exact_match` the plain way: decode every answer and compare the texts.

    :param forced_tokens: for each case the first tokens of its answer, where they are known.
    :param stop_early: stop decoding an answer once its score is decided.
    """
    cases = cases_or_all(task, cases)
    targets = [gold_text(task, case.example) for case in cases]

    def should_stop(row: int, text: str) -> bool:
        return is_decided(text, targets[row], task.match)

    # Of the last ten words nothing is decided before the end.
    stop_early = stop_early and task.match != "last_10_words"
    outputs = generated_answers(
        task,
        model,
        prompts_of(task, model, cases),
        candidates_of(cases),
        should_stop if stop_early else None,
        forced_tokens,
        may_stop=may_contain(model, targets) if task.match == "contains" else None,
    )
    right = torch.zeros(len(cases))
    for row, (output, target) in enumerate(zip(outputs, targets, strict=True)):
        right[row] = agrees(output, target, task.match)
    if margins is not None:
        margins.copy_(2 * right - 1)  # a text has no margin
    if derivatives is not None:
        write_answer_derivatives(task, model, cases, derivatives)
    return right


def may_contain(model: LanguageModel, targets: Sequence[str]) -> Callable[[int, int], bool]:
    """A function of a row and a token: whether a text that it ends may have got the row's target.

    :param targets: of the rows.
    """
    ends_with = {target: may_stop_after(model, (target,)) for target in set(targets)}
    return lambda row, token: ends_with[targets[row]](token)


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
    derivatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 if the greedy answer agrees with the target, by one forward pass where that decides it.

    Greedy decoding yields the target's tokens and then stops if and only if each of them is the
    arg-max after the ones before it. Where another token comes first, the answer can still read the
    same: the text so far is a beginning of the target, cut into other tokens. Those few answers are
    decoded, as far as needed.

    The margin is the least lead of a token of the target, in logits.
    """
    cases = cases_or_all(task, cases)
    if task.match != "equal" or task.protocol != "ours":
        return generated_match(
            task, model, cases, stop_early=True, margins=margins, derivatives=derivatives
        )
    requests = [greedy_request(task, model, case.example) for case in cases]
    value_of = None if derivatives is None else soft_margins
    likelihoods = model.likelihoods(requests, candidates_of(cases), value_of)
    if derivatives is not None:
        derivatives.copy_(likelihoods.derivatives)
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
