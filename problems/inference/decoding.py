"""Greedy decoding of a batch of prompts."""

from collections.abc import Callable, Collection, Sequence

import torch

from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.likelihoods import different_rows
from evox_evogm.problems.inference.prefix_cache import join_caches, rows_of_cache
from evox_evogm.problems.inference.prepared_batches import PreparedBatch
from evox_evogm.problems.inference.static_steps import StaticSteps, make_static_steps

NOT_A_NUMBER = -1  # in place of a token


class DecodingBatch:
    """Rows that get one token after another. Rows that have ended get none any more.

    - With a cache, a pass runs the new tokens only. Rows that have ended leave the batch and the
      cache, or else stay and get a token that nobody reads.
    - With a static cache, all steps behind the prompts have the same shapes until rows leave.
    - Without a cache, a pass runs all tokens again.

    :param batch: the prompts.
    :param drop_rows: whether rows that have ended leave the batch.
    :param least_ended: the share of rows that have to have ended before they leave. To leave costs
        a copy of the cache.
    :param static_steps: how many steps with a static cache there are at most; 0 for a growing one.
    """

    def __init__(
        self,
        batch: PreparedBatch,
        forward: Forward,
        *,
        drop_rows: bool = True,
        least_ended: float = 0.0,
        static_steps: int = 0,
    ):
        self.forward = forward
        self.candidates = batch.candidates
        self.tokens = batch.tokens  # (N, C), those that the next pass runs
        self.mask = batch.mask  # (N, cached + C)
        self.cache = batch.cache
        if self.cache is None and batch.cached_decoding:
            self.cache = forward.new_cache()
        self.rows_of_pass = batch.rows_of_pass or len(batch.rows)  # in the first pass
        self.drop_rows = drop_rows or self.cache is None
        self.least_ended = least_ended if self.cache is not None else 0.0
        self.static_steps = static_steps if self.cache is not None else 0
        self.steps: StaticSteps | None = None
        self.rows = batch.rows  # the numbers of the R rows that have not ended
        self.places = list(range(len(batch.rows)))  # of these rows in the batch

    def next_logits(self) -> torch.Tensor:
        """The logits `(R, V)` of the next token of each row that has not ended."""
        if len(self.candidates) > self.rows_of_pass:
            return self._run_prompts_in_parts()
        if self.steps is not None:
            logits = self.steps(self.tokens)
        else:
            scored = [1] * len(self.candidates)
            logits = self.forward(self.candidates, self.tokens, self.mask, scored, self.cache)
        if len(self.places) < len(logits):
            logits = logits[torch.tensor(self.places, device=logits.device)]
        return logits

    def _run_prompts_in_parts(self) -> torch.Tensor:
        """The logits `(N, V)` behind the prompts, which run in several passes."""
        assert self.cache is not None, "only rows with a cache run in parts"
        places = torch.arange(len(self.candidates), device=self.forward.device)
        is_empty = self.cache.get_seq_length() == 0
        logits, caches = [], []
        for first in range(0, len(self.candidates), self.rows_of_pass):
            rows = slice(first, first + self.rows_of_pass)
            cache = (
                self.forward.new_cache() if is_empty else rows_of_cache(self.cache, places[rows])
            )
            candidates = self.candidates[rows]
            scored = [1] * len(candidates)
            logits.append(
                self.forward(candidates, self.tokens[rows], self.mask[rows], scored, cache)
            )
            caches.append(cache)
        self.cache = join_caches(caches)
        self.rows_of_pass = len(self.candidates)
        return torch.cat(logits)

    def append(self, chosen: torch.Tensor, running: Sequence[int]) -> None:
        """Append a token to each row that goes on; the others end.

        :param chosen: an `(R,)` tensor of tokens.
        :param running: which of the R rows go on.
        """
        if len(running) < len(self.rows):
            chosen = chosen[torch.tensor(running, device=chosen.device)]
            self.rows = [self.rows[index] for index in running]
            self.places = [self.places[index] for index in running]
        ended = len(self.candidates) - len(self.places)
        if self.drop_rows and ended and ended >= self.least_ended * len(self.candidates):
            self._drop_all_but(self.places)
        if len(self.places) < len(self.candidates):
            chosen = self._for_all_rows(chosen)
        tokens = chosen[:, None]
        self._make_static()
        if self.steps is not None:
            self.tokens = tokens
            return
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        self.tokens = tokens if self.cache is not None else torch.cat([self.tokens, tokens], 1)

    def _make_static(self) -> None:
        """Go on with a static cache behind the prompts, where that is wanted and possible."""
        if not self.static_steps:
            return
        assert self.cache is not None, "a static cache takes over what a growing one holds"
        self.steps = make_static_steps(
            self.forward, self.candidates, self.cache, self.mask, self.static_steps
        )
        self.static_steps = 0
        if self.steps is not None:
            self.cache = None  # its memory is free now

    def _drop_all_but(self, places: Sequence[int]) -> None:
        """Let rows leave the batch.

        :param places: of the rows that stay.
        """
        if self.steps is not None:
            self.steps.keep_rows(places)
        else:
            kept = torch.tensor(places, device=self.forward.device)
            if self.cache is not None:
                self.cache = rows_of_cache(self.cache, kept)
            else:
                self.tokens = self.tokens[kept]
            self.mask = self.mask[kept]
        self.candidates = [self.candidates[place] for place in places]
        self.places = list(range(len(places)))

    def _for_all_rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """The next tokens `(N,)` of all rows: those chosen, and any for rows that have ended."""
        tokens = self.tokens[:, -1].clone()
        tokens[torch.tensor(self.places, device=tokens.device)] = chosen
        return tokens


def decode_greedily(
    batch: PreparedBatch,
    forward: Forward,
    replies: list[list[int]],
    *,
    end_tokens: Collection[int],
    is_complete: Callable[[int], bool],
    drop_rows: bool = True,
    least_ended: float = 0.0,
    static_steps: int = 0,
) -> None:
    """Append greedy tokens to the replies to a batch of prompts, without the end of text.

    :param batch: the prompts. The number of a row is that of its reply.
    :param replies: the tokens of every reply.
    :param end_tokens: tokens that end a reply.
    :param is_complete: takes the number of a reply; true if it gets no more tokens.
    :param drop_rows: whether rows that have ended leave the batch and its cache.
    :param least_ended: the share of rows that have to have ended before they leave.
    :param static_steps: how many steps with a static cache there are at most; 0 for a growing one.
    :raises ArithmeticError: if a model gives NaN.
    """
    decoding = DecodingBatch(
        batch,
        forward,
        drop_rows=drop_rows,
        least_ended=least_ended,
        static_steps=static_steps,
    )
    while True:
        chosen = most_likely_tokens(decoding.next_logits())  # (R,)
        tokens = chosen.tolist()  # waits for the device, once a step
        if NOT_A_NUMBER in tokens:
            raise ArithmeticError("expected logits, found NaN")
        running = []
        for index, token in enumerate(tokens):
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
    """The tokens `(N,)` with the largest of the logits `(N, V)`; -1 where that is NaN."""
    different = different_rows(logits)
    chosen = different.argmax(-1)
    largest = different.gather(-1, chosen[:, None])[:, 0]
    return torch.where(largest.isnan(), NOT_A_NUMBER, chosen).expand(len(logits))
