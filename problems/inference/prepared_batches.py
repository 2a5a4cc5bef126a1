"""Rows in batches that are ready for their forward pass. First tokens that rows share have run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.inference.batching import Batching
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.prefix_cache import (
    PrefixCache,
    may_join_caches,
    may_pad_after_prefix,
    rows_of_cache,
    run_prefixes,
)
from evox_evogm.problems.inference.shared_prefixes import (
    Row,
    SharedPrefix,
    group_by_prefix,
    shared_lengths,
)
from evox_evogm.problems.to_device import to_device

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


@dataclass(frozen=True)
class PreparedBatch:
    """A batch of N rows before its forward pass.

    :param rows: the numbers of the rows.
    :param candidates: for each row its candidate.
    :param tokens: an `(N, C)` tensor of the tokens that have not run yet.
    :param mask: an `(N, cached + C)` tensor, 0 at the padding.
    :param scored: for each row at how many positions logits are needed.
    :param cache: of the tokens that have run; None if none have.
    :param cached_decoding: whether more tokens may follow with a cache.
    :param rows_of_pass: how many rows one pass may run; None for all.
    """

    rows: list[int]
    candidates: list[int]
    tokens: torch.Tensor
    mask: torch.Tensor
    scored: list[int]
    cache: "Cache | None"
    cached_decoding: bool = True
    rows_of_pass: int | None = None

    def run(self, forward: Forward, target_offset: int = 0) -> torch.Tensor:
        """The logits `(Q, V)` of the scored positions, see `Forward.__call__`."""
        return forward(
            self.candidates, self.tokens, self.mask, self.scored, self.cache, target_offset
        )


def prepare_batches(
    rows: Sequence[Row],
    forward: Forward,
    batching: Batching,
    *,
    max_new_tokens: int = 0,
    capabilities: Capabilities | None = None,
) -> Iterator[PreparedBatch]:
    """Prepare batches of rows for a pass over the tokens that they do not share.

    The passes over the prefixes are made on the way.

    :param rows: the rows; the batches name them by their place here.
    :param max_new_tokens: how many tokens will follow each row.
    :param capabilities: what may be relied on; everything by default.
    """
    capabilities = capabilities or Capabilities()
    for numbers, able in split_by_kind(rows, max_new_tokens, capabilities):
        some_rows = [rows[number] for number in numbers]
        for batch in _prepare_rows(some_rows, forward, batching, max_new_tokens, able):
            yield replace(batch, rows=[numbers[row] for row in batch.rows])


def split_by_kind(
    rows: Sequence[Row], max_new_tokens: int, capabilities: Capabilities
) -> list[tuple[list[int], Capabilities]]:
    """The numbers of rows that may be prepared together, with what may be relied on for them."""
    numbers_of: dict[tuple[str, int], list[int]] = {}
    for number, row in enumerate(rows):
        kind = capabilities.row_kind(len(row.tokens), max_new_tokens)
        candidate = 0 if capabilities.mix_candidates else row.candidate
        numbers_of.setdefault((kind, candidate), []).append(number)
    parts = []
    for (kind, _), numbers in numbers_of.items():
        parts.append((numbers, capabilities.for_kind(kind)))
    return parts


def _prepare_rows(
    rows: Sequence[Row],
    forward: Forward,
    batching: Batching,
    max_new_tokens: int,
    capabilities: Capabilities,
) -> Iterator[PreparedBatch]:
    """Prepare batches of rows for which the same may be relied on."""
    pads = capabilities.pad_rows
    if max_new_tokens and capabilities.cache:
        pads = pads and capabilities.pad_cached_rows
    batching = replace(batching, pad_rows=pads, batch_rows=capabilities.batch_rows)
    if not (capabilities.cache and capabilities.drop_rows and may_join_caches(forward)):
        batching = replace(batching, decode_rows=None)
    lengths = lengths_to_share(rows, forward.model, max_new_tokens, capabilities)
    prefixes = group_by_prefix(rows, lengths)
    make = _BatchMaker(rows, forward, batching, max_new_tokens, capabilities)
    for prefix in prefixes:
        if not prefix.tokens:
            yield from make.batches([prefix], None)
    prefixes = [prefix for prefix in prefixes if prefix.tokens]
    prefix_tokens = [prefix.tokens for prefix in prefixes]
    for numbers in batching.split(prefix_tokens, scored=[0] * len(prefixes), cached=0):
        group = [prefixes[number] for number in numbers]
        yield from make.batches(group, run_prefixes(group, forward, batching))


def lengths_to_share(
    rows: Sequence[Row],
    model: "PreTrainedModel",
    max_new_tokens: int,
    capabilities: Capabilities,
) -> list[int]:
    """How many first tokens of each row run in a pass of their own, see `shared_lengths`."""
    longest = max((len(row.tokens) for row in rows), default=0)
    if not (capabilities.share_prefixes and capabilities.cache):
        return [0] * len(rows)
    if capabilities.pad_after_prefix and not may_pad_after_prefix(model, longest, max_new_tokens):
        return [0] * len(rows)
    return shared_lengths(rows)


@dataclass(frozen=True)
class _BatchMaker:
    """Makes batches of rows without the prefixes that ran before.

    :param rows: all rows.
    :param batching: how rows become batches.
    :param max_new_tokens: how many tokens will follow each row.
    :param capabilities: what may be relied on for these rows.
    """

    rows: Sequence[Row]
    forward: Forward
    batching: Batching
    max_new_tokens: int
    capabilities: Capabilities

    def batches(
        self, group: Sequence[SharedPrefix], cached: PrefixCache | None
    ) -> Iterator[PreparedBatch]:
        """Batches of the rows that have the prefixes of a group.

        :param cached: the prefixes; None if they are empty.
        """
        members: list[int] = []  # numbers of rows
        places: list[int] = []  # of the prefix of each member in the group
        for place, prefix in enumerate(group):
            members += prefix.rows
            places += [place] * len(prefix.rows)
        rests = []
        for row, place in zip(members, places, strict=True):
            rests.append(self.rows[row].tokens[len(group[place].tokens) :])
        for batch in self._split(rests, members, cached):
            rests_of_batch = [rests[member] for member in batch]
            places_of_batch = [places[member] for member in batch]
            numbers = [members[member] for member in batch]
            yield self._prepare(numbers, rests_of_batch, places_of_batch, cached)

    def _split(
        self, rests: list[tuple[int, ...]], members: list[int], cached: PrefixCache | None
    ) -> Iterator[list[int]]:
        """Split rows without their prefixes into batches."""
        batching = self.batching
        if cached is not None and not self.capabilities.pad_after_prefix:
            batching = replace(batching, pad_rows=False)
        scored = [self.rows[row].scored for row in members]
        if not self.capabilities.cache:
            return batching.split(rests, scored, added=self.max_new_tokens)
        other_tokens = None  # in the cache in the end
        if cached is not None:
            other_tokens = cached.width + self.max_new_tokens
        elif self.max_new_tokens:
            other_tokens = self.max_new_tokens
        return batching.split(rests, scored, other_tokens, steps=self.max_new_tokens)

    def _prepare(
        self,
        numbers: list[int],
        rests: list[tuple[int, ...]],
        places: list[int],
        cached: PrefixCache | None,
    ) -> PreparedBatch:
        """The batch of some rows.

        :param numbers: of the rows.
        :param rests: their tokens behind their prefixes.
        :param places: of their prefixes in `cached`.
        """
        device = self.forward.device
        tokens, mask = self.batching.pad_left(rests, device)
        cache = None
        if cached is not None:
            prefix_rows = to_device(torch.tensor(places), device)
            cache = rows_of_cache(cached.cache, prefix_rows)
            mask = torch.cat([cached.mask[prefix_rows], mask], 1)
        return PreparedBatch(
            rows=numbers,
            candidates=[self.rows[number].candidate for number in numbers],
            tokens=tokens,
            mask=mask,
            scored=[self.rows[number].scored for number in numbers],
            cache=cache,
            cached_decoding=self.capabilities.cache,
            rows_of_pass=self._rows_of_pass(tokens.shape[1]),
        )

    def _rows_of_pass(self, width: int) -> int | None:
        """How many rows of a batch that decodes one pass may run; None for all."""
        if not self.max_new_tokens or self.batching.decode_rows is None:
            return None
        return self.batching.rows_of_pass(width)
