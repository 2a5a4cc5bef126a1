"""Greedy decoding of a batch of prompts."""

from collections.abc import Callable, Collection, Sequence

import torch

from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.prefix_cache import PreparedBatch, rows_of_cache


class DecodingBatch:
    """Rows that get one token after another. Rows that have ended get none any more.

    - With a cache, a pass runs the new tokens only. Rows that have ended leave the batch and the
      cache, or else stay and get a token that nobody reads.
    - Without a cache, a pass runs all tokens again.

    :param batch: the prompts.
    :param drop_rows: whether rows that have ended leave the batch.
    """

    def __init__(self, batch: PreparedBatch, forward: Forward, *, drop_rows: bool = True):
        self.forward = forward
        self.candidates = batch.candidates
        self.tokens = batch.tokens  # (N, C), those that the next pass runs
        self.mask = batch.mask  # (N, cached + C)
        self.cache = batch.cache
        if self.cache is None and batch.cached_decoding:
            self.cache = forward.new_cache()
        self.drop_rows = drop_rows or self.cache is None
        self.rows = batch.rows  # the numbers of the R rows that have not ended
        self.places = list(range(len(batch.rows)))  # of these rows in the batch

    def next_logits(self) -> torch.Tensor:
        """The logits `(R, V)` of the next token of each row that has not ended."""
        scored = [1] * len(self.candidates)
        logits = self.forward(self.candidates, self.tokens, self.mask, scored, self.cache)
        if len(self.places) < len(logits):
            logits = logits[torch.tensor(self.places, device=logits.device)]
        return logits

    def append(self, chosen: torch.Tensor, running: Sequence[int]) -> None:
        """Append a token to each row that goes on; the others end.

        :param chosen: an `(R,)` tensor of tokens.
        :param running: which of the R rows go on.
        """
        kept = torch.tensor(running, device=self.forward.device)
        if len(running) < len(self.rows):
            if self.drop_rows:
                self._drop_all_but(kept)
                chosen = chosen[kept]
            self.rows = [self.rows[index] for index in running]
        if not self.drop_rows:
            chosen = self._for_all_rows(chosen, running)
        tokens = chosen[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        self.tokens = tokens if self.cache is not None else torch.cat([self.tokens, tokens], 1)

    def _drop_all_but(self, kept: torch.Tensor) -> None:
        """Let rows leave the batch.

        :param kept: a tensor of the places of the rows that stay.
        """
        if self.cache is not None:
            self.cache = rows_of_cache(self.cache, kept)
        else:
            self.tokens = self.tokens[kept]
        self.mask = self.mask[kept]
        self.candidates = [self.candidates[place] for place in kept.tolist()]
        self.places = list(range(len(kept)))

    def _for_all_rows(self, chosen: torch.Tensor, running: Sequence[int]) -> torch.Tensor:
        """The next tokens `(N,)` of all rows: those chosen, and any for rows that have ended."""
        places = [self.places[index] for index in running]
        tokens = self.tokens[:, -1].clone()
        tokens[places] = chosen[list(running)]
        self.places = places
        return tokens


def decode_greedily(
    batch: PreparedBatch,
    forward: Forward,
    replies: list[list[int]],
    *,
    end_tokens: Collection[int],
    is_complete: Callable[[int], bool],
    drop_rows: bool = True,
) -> None:
    """Append greedy tokens to the replies to a batch of prompts, without the end of text.

    :param batch: the prompts. The number of a row is that of its reply.
    :param replies: the tokens of every reply.
    :param end_tokens: tokens that end a reply.
    :param is_complete: takes the number of a reply; true if it gets no more tokens.
    :param drop_rows: whether rows that have ended leave the batch and its cache.
    :raises ArithmeticError: if a model gives NaN.
    """
    decoding = DecodingBatch(batch, forward, drop_rows=drop_rows)
    while True:
        chosen = most_likely_tokens(decoding.next_logits())  # (R,)
        running = []
        for index, token in enumerate(chosen.tolist()):
            row = decoding.rows[index]
            if token in end_tokens:
                continue
            replies[row].append(token)
            if not is_complete(row):
                running.append(index)
        if not running:
            return
        decoding.append(chosen, running)


def most_likely_tokens(logits: torch.Tensor) -> torch.Tensor:
    """The tokens `(N,)` with the largest of the logits `(N, V)`.

    :raises ArithmeticError: if a largest logit is NaN.
    """
    chosen = logits.argmax(-1)
    if logits.gather(-1, chosen[:, None]).isnan().any():
        raise ArithmeticError("expected logits, found NaN")
    return chosen
