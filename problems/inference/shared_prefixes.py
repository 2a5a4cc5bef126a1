"""Which first tokens several rows share: few-shot examples, or a question with several
continuations.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

LEAST_SAVING = 0.25  # of the tokens; a prefix costs a pass of its own and copies of its cache


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
