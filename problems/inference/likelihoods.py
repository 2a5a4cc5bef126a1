"""How likely given continuations are, from the logits at their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from evox_evogm.problems.to_device import to_device


class ScoredPass(NamedTuple):
    """The logits of some requests, from one pass.

    :param rows: the numbers of the requests.
    :param lengths: the scored positions of each; Q together.
    :param logits: a `(Q, V)` tensor, row after row.
    """

    rows: list[int]
    lengths: list[int]
    logits: torch.Tensor


@dataclass(frozen=True)
class Likelihoods:
    """Of N continuations, each an `(N,)` tensor on the CPU.

    :param log_probability: the sum over the tokens, in nats.
    :param first_miss: the index of the first token that greedy decoding would not choose, or the
        number of tokens if it chooses all.
    :param missed_token: the token that greedy decoding chooses there, or -1 if it chooses all.
    :param margin: the least over the tokens of a token's logit minus the largest other one. It is
        above 0 if greedy decoding chooses all.
    :param derivatives: an `(N, n g)` tensor, by the coefficients, of what was asked for; empty if
        nothing was.
    """

    log_probability: torch.Tensor
    first_miss: torch.Tensor
    missed_token: torch.Tensor
    margin: torch.Tensor
    derivatives: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def empty(cls, count: int) -> "Likelihoods":
        """Of `count` continuations that are yet to be scored."""
        return cls(
            log_probability=torch.zeros(count),
            first_miss=torch.zeros(count, dtype=torch.long),
            missed_token=torch.full((count,), -1),
            margin=torch.zeros(count),
        )

    def fill(self, rows: Sequence[int], part: "Likelihoods") -> None:
        """Write the likelihoods of some continuations to their rows."""
        places = torch.tensor(rows)
        self.log_probability[places] = part.log_probability
        self.first_miss[places] = part.first_miss
        self.missed_token[places] = part.missed_token
        self.margin[places] = part.margin


class MeasuredTokens(NamedTuple):
    """What the likelihood of continuations needs of their Q tokens, on the device.

    :param values: a `(2, Q)` tensor, their log-probabilities and margins.
    :param tokens: a `(2, Q)` tensor, the likeliest tokens in their places, and they themselves.
    """

    values: torch.Tensor
    tokens: torch.Tensor


def measure_tokens(logits: torch.Tensor, targets: torch.Tensor) -> MeasuredTokens:
    """Measure the tokens of continuations. Nothing waits for the device.

    :param logits: a `(Q, V)` tensor, in each row the logits from which a token is predicted.
    :param targets: a `(Q,)` tensor of the tokens, on the same device.
    """
    logits = different_rows(logits)
    choices = logits.argmax(-1).expand_as(targets)  # (Q,)
    logits = logits.float()
    gold = logits.expand(len(targets), -1).gather(-1, targets[:, None])[:, 0]  # (Q,)
    scores = gold - logits.logsumexp(-1)
    largest, second = logits.topk(2, -1).values.unbind(-1)
    margins = gold - torch.where(choices == targets, second, largest)
    return MeasuredTokens(torch.stack([scores, margins]), torch.stack([choices, targets]))


def read_likelihoods(measured: MeasuredTokens, lengths: Sequence[int]) -> Likelihoods:
    """The likelihoods of N continuations of Q tokens together. This waits for the device.

    :param lengths: the number of tokens of each continuation.
    """
    # One column a continuation, (W, N), padded at the end.
    scores, margins = by_continuation(measured.values.cpu(), lengths)
    choices, targets = by_continuation(measured.tokens.cpu(), lengths)
    ends = torch.tensor(lengths)  # (N,)
    place = torch.arange(len(scores))[:, None]  # (W, 1)
    inside = place < ends  # (W, N)
    missed = (choices != targets) & inside
    first_miss = torch.where(missed, place, ends).amin(0)  # (N,)
    chosen = choices.gather(0, first_miss.clamp(max=len(choices) - 1)[None])[0]
    return Likelihoods(
        log_probability=scores.sum(0),
        first_miss=first_miss,
        missed_token=torch.where(first_miss < ends, chosen, -1),
        margin=torch.where(inside, margins, torch.inf).amin(0),
    )


def different_rows(logits: torch.Tensor) -> torch.Tensor:
    """The `(Q, V)` logits, or `(1, V)` where one row stands for all, as in a `CountingForward`.

    A vocabulary of 150,000 tokens makes a millisecond of work for each row.
    """
    return logits[:1] if logits.stride(0) == 0 else logits


def by_continuation(values: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Rows `(Q,)` of values of the tokens of N continuations as `(W, N)` tensors."""
    return [pad_sequence(row.split(list(lengths))) for row in values]


def log_probabilities_of(logits: torch.Tensor, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """The log-probabilities of all tokens, row after row, on the device of the logits.

    :param logits: an `(N, V)` tensor.
    :param tokens: of each of the N rows.
    """
    logits = different_rows(logits).float()
    normalizers = logits.logsumexp(-1).expand(len(tokens))  # (N,)
    rows: list[int] = []
    columns: list[int] = []
    for row, of_row in enumerate(tokens):
        rows += [row] * len(of_row)
        columns += of_row
    places = to_device(torch.tensor(rows), logits.device)
    chosen = logits.expand(len(tokens), -1)[places, to_device(torch.tensor(columns), logits.device)]
    return chosen - normalizers[places]
