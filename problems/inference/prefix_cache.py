"""First tokens that several rows share run once: few-shot examples, or a question with several
continuations.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from evox_evogm.problems.inference.batching import Batching
from evox_evogm.problems.inference.capabilities import Capabilities, text_config
from evox_evogm.problems.inference.forward import Forward

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

LEAST_SAVING = 0.25  # of the tokens; a prefix costs a pass of its own and copies of its cache
# Settings of models whose attention is limited to a window over the columns.
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")


class Row(NamedTuple):
    """The tokens of one request.

    :param tokens: all tokens that the model reads.
    :param candidate: the candidate that they are for.
    :param shareable: how many of the first tokens a pass of a prefix may run.
    :param scored: at how many positions at the end logits are needed.
    """

    tokens: tuple[int, ...]
    candidate: int
    shareable: int
    scored: int = 1


@dataclass(frozen=True)
class SharedPrefix:
    """First tokens that some rows of one candidate share.

    :param candidate: the candidate. It is 0 where `tokens` is empty: such rows share nothing.
    :param tokens: the shared tokens.
    :param rows: the numbers of the rows.
    """

    candidate: int
    tokens: tuple[int, ...]
    rows: list[int]


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


@dataclass(frozen=True)
class PrefixCache:
    """The keys and values of K prefixes.

    :param cache: a row per prefix.
    :param mask: a `(K, W)` tensor, 0 at the padding.
    """

    cache: "Cache"
    mask: torch.Tensor

    @property
    def width(self) -> int:
        """W, the cached tokens of each prefix, padding included."""
        return self.mask.shape[1]


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
            prefix_rows = torch.tensor(places, device=device)
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


def run_prefixes(
    prefixes: Sequence[SharedPrefix], forward: Forward, batching: Batching
) -> PrefixCache:
    """Make the pass over some prefixes, and keep what later positions need of it."""
    cache = forward.new_cache()
    tokens, mask = batching.pad_left([prefix.tokens for prefix in prefixes], forward.device)
    candidates = [prefix.candidate for prefix in prefixes]
    forward(candidates, tokens, mask, [0] * len(prefixes), cache)
    return PrefixCache(cache, mask)


def rows_of_cache(cache: "Cache", rows: torch.Tensor) -> "Cache":
    """A cache that holds some rows of another one, which stays as it is.

    All states of each layer are selected: keys and values, and those of recurrent layers.
    """
    part = copy_cache(cache)
    part.reorder_cache(cast(torch.LongTensor, rows))  # replaces the tensors of the copied layers
    return part


def copy_cache(cache: "Cache") -> "Cache":
    """A cache with the same tensors, to which later positions may be added in either."""
    copied = copy.copy(cache)
    copied.layers = [copy_layer(layer) for layer in cache.layers]
    return copied


def may_join_caches(forward: Forward) -> bool:
    """Whether the rows of several caches may come into one: all layers hold keys and values."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if forward.cache_argument is None:
        return False
    layers = forward.new_cache().layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def join_caches(caches: Sequence["Cache"]) -> "Cache":
    """One cache with the rows of several, which hold as many positions each."""
    joined = copy_cache(caches[0])
    layers: list[Any] = list(joined.layers)
    for place, layer in enumerate(layers):
        parts: list[Any] = [cache.layers[place] for cache in caches]
        if layer.is_initialized:
            layer.keys = torch.cat([part.keys for part in parts])
            layer.values = torch.cat([part.values for part in parts])
    return joined


def copy_layer(layer):
    """A layer of a cache with the same tensors, which may be replaced in either."""
    copied = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # the states of recurrent layers
            setattr(copied, name, dict(value))
    return copied


def may_pad_after_prefix(model: "PreTrainedModel", longest: int, max_new_tokens: int) -> bool:
    """Whether padding may stand between a prefix and the rest of a row.

    So the model has to take positions as they are given, and padding must not push tokens out of a
    window over the columns.

    :param longest: the number of tokens of the longest row.
    :param max_new_tokens: how many tokens will follow.
    """
    if "position_ids" not in signature(type(model).forward).parameters:
        return False
    columns = 2 * longest + max_new_tokens
    return all(columns <= window for window in windows_of(model))


def windows_of(model: "PreTrainedModel") -> list[int]:
    """The windows over the columns to which attention is limited in some layers."""
    config = text_config(model)
    windows = []
    for name in WINDOWS:
        window = getattr(config, name, None)
        if isinstance(window, int):
            windows.append(window)
    return windows


def group_by_prefix(rows: Sequence[Row], lengths: Sequence[int]) -> list[SharedPrefix]:
    """The rows by the first tokens that they share. Those that share none have an empty prefix.

    :param lengths: how many first tokens each row shares.
    """
    prefixes: dict[tuple[int, tuple[int, ...]], SharedPrefix] = {}
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        candidate = row.candidate if length else 0
        tokens = row.tokens[:length]
        key = (candidate, tokens)
        if key not in prefixes:
            prefixes[key] = SharedPrefix(candidate, tokens, rows=[])
        prefixes[key].rows.append(number)
    return list(prefixes.values())


def shared_lengths(rows: Sequence[Row]) -> list[int]:
    """How many first tokens of each row run in a pass of their own, once for all that share them.

    There are two ways to share, and the one that leaves fewer tokens to run is taken:

    - All rows share the tokens that all of them begin with.
    - A row shares all its `shareable` tokens with the rows of its candidate that have the same.

    Nothing is shared if that saves less than a quarter of the tokens.
    """
    nothing = [0] * len(rows)
    if len(rows) < 2:
        return nothing
    limit = min(row.shareable for row in rows)
    common = common_prefix([row.tokens for row in rows])
    by_all = [min(common, limit)] * len(rows)
    by_some = repeated_lengths(rows)
    best = min(by_all, by_some, key=lambda lengths: tokens_to_run(rows, lengths))
    total = sum(len(row.tokens) for row in rows)
    if tokens_to_run(rows, best) > (1 - LEAST_SAVING) * total:
        return nothing
    return best


def repeated_lengths(rows: Sequence[Row]) -> list[int]:
    """The number of `shareable` tokens of each row if another row of its candidate has the same."""
    prefixes = [(row.candidate, row.tokens[: row.shareable]) for row in rows]
    counts = Counter(prefixes)
    lengths = []
    for candidate, tokens in prefixes:
        shared = counts[candidate, tokens] > 1
        lengths.append(len(tokens) if shared else 0)
    return lengths


def tokens_to_run(rows: Sequence[Row], lengths: Sequence[int]) -> int:
    """The tokens of all passes, without padding, if each row shares so many first tokens."""
    prefixes = set()
    rest = 0
    for row, length in zip(rows, lengths, strict=True):
        prefixes.add((row.candidate, row.tokens[:length]))
        rest += len(row.tokens) - length
    return rest + sum(len(tokens) for _, tokens in prefixes)


def common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """The number of tokens that all rows begin with."""
    first = min(rows)
    last = max(rows)  # in the order of the tokens, so all others agree where these two do
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return place
    return min(len(first), len(last))
