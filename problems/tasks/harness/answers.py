"""Ask a language model what documents of the harness ask, for all candidates in shared batches."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from evox_evogm.problems.inference.derivatives import ValueOf
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Request
from evox_evogm.problems.inference.stop_texts import cut, may_stop_after, stops
from evox_evogm.problems.tasks.harness.generation import Generation
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
    requests = collect_requests(documents, candidates)
    count = requests.total
    log_likelihoods = torch.zeros(count)
    greedy = torch.ones(count, dtype=torch.bool)
    leads = torch.full((count,), torch.inf)
    derivatives = None
    rows, row_candidates = requests.rows, requests.candidates
    places = torch.tensor(requests.owners, dtype=torch.int64)
    if rows and only_values and derivative_of is None:
        found_values = _log_likelihoods(model, rows, row_candidates)
        log_likelihoods.index_add_(0, places, found_values)
    elif rows:
        found = model.likelihoods(rows, row_candidates, derivative_of, skip_last=True)
        lengths = torch.tensor([len(rest) for _, rest in rows])
        log_likelihoods.index_add_(0, places, found.log_probability)
        greedy[places[found.first_miss < lengths]] = False
        leads.scatter_reduce_(0, places, found.margin, "amin")
        if derivative_of is not None:
            derivatives = torch.zeros(count, found.derivatives.shape[1])
            derivatives.index_add_(0, places, found.derivatives)
    texts: dict[int, str] = {}
    for generation, prompts in requests.prompts.items():
        tokens = [prompt.tokens for prompt in prompts]
        found_texts = generate(model, generation, tokens, [prompt.candidate for prompt in prompts])
        for prompt, text in zip(prompts, found_texts, strict=True):
            texts[prompt.number] = text
    return Answered(log_likelihoods, greedy, leads, texts, derivatives)


class Prompt(NamedTuple):
    """A request for a text.

    :param number: of the request among all.
    :param candidate: that answers.
    :param tokens: of the prompt.
    """

    number: int
    candidate: int
    tokens: tuple[int, ...]


class Requests(NamedTuple):
    """The requests of some cases, apart by kind.

    :param total: how many there are.
    :param rows: prompts with the tokens whose likelihood is wanted.
    :param candidates: of each row.
    :param owners: the number of the request of each row; one may have several.
    :param prompts: those for texts, by how they are generated.
    """

    total: int
    rows: list[Request]
    candidates: list[int]
    owners: list[int]
    prompts: dict[Generation, list[Prompt]]


def collect_requests(documents: Sequence[DocumentTokens], candidates: Sequence[int]) -> Requests:
    """The requests of some documents, in their order.

    :param documents: the requests of each case, in tokens.
    :param candidates: of each case.
    """
    rows: list[Request] = []
    row_candidates: list[int] = []
    owners: list[int] = []
    prompts: dict[Generation, list[Prompt]] = {}
    count = 0
    for candidate, document in zip(candidates, documents, strict=True):
        for instance in document:
            if instance.generation is not None:
                prompt = Prompt(count, candidate, instance.prompt)
                prompts.setdefault(instance.generation, []).append(prompt)
            for request in instance.likelihoods:
                rows.append(request)
                row_candidates.append(candidate)
                owners.append(count)
            count += 1
    return Requests(count, rows, row_candidates, owners, prompts)


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

    ends_with = may_stop_after(model, until)
    texts = model.generate(
        prompts,
        generation.max_new_tokens,
        candidates,
        lambda _, text: stops(text, until),
        may_stop=lambda _, token: ends_with(token),
    )
    return [cut(text, until) for text in texts]
