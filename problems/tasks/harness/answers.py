"""Ask a language model what documents of the harness ask, for all candidates in shared batches."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from evox_evogm.problems.inference.derivatives import ValueOf
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Request
from evox_evogm.problems.tasks.harness.generation import Generation, cut, may_stop_after, stops
from evox_evogm.problems.tasks.harness.source import DocumentTokens


class Answered(NamedTuple):
    """The answers to the requests of some cases, R together, request after request.

    :param log_likelihoods: an `(R,)` tensor, summed over windows; 0 of generated answers.
    :param greedy: an `(R,)` tensor, whether greedy decoding would give the continuation.
    :param leads: an `(R,)` tensor, the least lead of a token of the continuation in logits.
    :param texts: the generated answers, by the number of their request.
    :param derivatives: an `(R, n g)` tensor by the coefficients, or None.
    """

    log_likelihoods: torch.Tensor
    greedy: torch.Tensor
    leads: torch.Tensor
    texts: dict[int, str]
    derivatives: torch.Tensor | None


def ask(
    model: LanguageModel,
    documents: Sequence[DocumentTokens],
    candidates: Sequence[int],
    *,
    only_values: bool = False,
    derivative_of: ValueOf | None = None,
) -> Answered:
    """Answer the requests of some cases.

    :param documents: the requests of each case, in tokens.
    :param candidates: of each case.
    :param only_values: whether `greedy` and `leads` may be left out, which makes choices of one
        token cheaper.
    :param derivative_of: what is differentiated of every continuation, if anything.
    """
    rows: list[Request] = []
    row_candidates: list[int] = []
    owners: list[int] = []  # the request of each row
    prompts: dict[Generation, list[tuple[int, int, tuple[int, ...]]]] = {}
    count = 0
    for candidate, document in zip(candidates, documents, strict=True):
        for instance in document:
            if instance.generation is not None:
                asked = (count, candidate, instance.prompt)
                prompts.setdefault(instance.generation, []).append(asked)
            for request in instance.likelihoods:
                rows.append(request)
                row_candidates.append(candidate)
                owners.append(count)
            count += 1
    log_likelihoods = torch.zeros(count)
    greedy = torch.ones(count, dtype=torch.bool)
    leads = torch.full((count,), torch.inf)
    derivatives = None
    if rows and only_values and derivative_of is None:
        log_likelihoods.index_add_(
            0, torch.tensor(owners), _log_likelihoods(model, rows, row_candidates)
        )
    elif rows:
        found = model.likelihoods(rows, row_candidates, derivative_of, skip_last=True)
        places = torch.tensor(owners)
        lengths = torch.tensor([len(rest) for _, rest in rows])
        log_likelihoods.index_add_(0, places, found.log_probability)
        greedy[places[found.first_miss < lengths]] = False
        leads.scatter_reduce_(0, places, found.margin, "amin")
        if derivative_of is not None:
            derivatives = torch.zeros(count, found.derivatives.shape[1])
            derivatives.index_add_(0, places, found.derivatives)
    texts: dict[int, str] = {}
    for generation, asked_together in prompts.items():
        numbers = [number for number, _, _ in asked_together]
        found_texts = generate(
            model,
            generation,
            [prompt for _, _, prompt in asked_together],
            [candidate for _, candidate, _ in asked_together],
        )
        texts.update(zip(numbers, found_texts, strict=True))
    return Answered(log_likelihoods, greedy, leads, texts, derivatives)


def _log_likelihoods(
    model: LanguageModel, rows: Sequence[Request], candidates: Sequence[int]
) -> torch.Tensor:
    """The log-likelihood of each row; those of one token behind one prompt by one pass."""
    result = torch.zeros(len(rows))
    short: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    long: list[int] = []
    for number, (prompt, rest) in enumerate(rows):
        if len(rest) == 1:
            short.setdefault((candidates[number], prompt), []).append(number)
        else:
            long.append(number)
    if short:
        found = model.next_token_log_probabilities(
            [prompt for _, prompt in short],
            [[rows[number][1][0] for number in numbers] for numbers in short.values()],
            [candidate for candidate, _ in short],
        )
        for numbers, values in zip(short.values(), found, strict=True):
            result[numbers] = values
    if long:
        some_rows = [rows[number] for number in long]
        some_candidates = [candidates[number] for number in long]
        found_long = model.likelihoods(some_rows, some_candidates, skip_last=True)
        result[long] = found_long.log_probability
    return result


def generate(
    model: LanguageModel,
    generation: Generation,
    prompts: Sequence[tuple[int, ...]],
    candidates: Sequence[int],
) -> list[str]:
    """The most likely texts after prompts, up to where they end.

    :param candidates: of each prompt.
    """
    end = model.tokenizer.decode([model.end_token], skip_special_tokens=False)
    until = (*generation.until, *([end] if end else ()))

    def should_stop(_: int, text: str) -> bool:
        return stops(text, until)

    texts = model.generate(
        prompts,
        generation.max_new_tokens,
        candidates,
        should_stop,
        may_stop=may_stop_after(model, until),
    )
    return [cut(text, until) for text in texts]
