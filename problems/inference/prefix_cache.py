"""Which first tokens of several requests are run once: few-shot examples, or a question with several continuations."""

from collections import Counter
from collections.abc import Sequence

LEAST_SAVING = 0.25  # of the tokens; a prefix costs a pass of its own and copies of its cache


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all rows begin with."""
    first, last = (
        min(rows),
        max(rows),
    )  # in the order of the tokens, so everything between agrees where these two do
    return next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )


def shared_lengths(
    rows: Sequence[tuple[int, ...]], limits: Sequence[int], candidates: Sequence[int]
) -> list[int]:
    """How many first tokens of each row are left to a pass that it shares with other rows of the same candidate.

    Either the tokens that all rows begin with, or those up to a row's limit where another row has the same; whichever leaves
    fewer tokens to run. Nothing is shared if that saves less than a quarter of them.

    :param rows: N rows of tokens.
    :param limits: for each row how many of its first tokens may be shared.
    :param candidates: for each row the candidate it asks.
    :return: N numbers of tokens.
    """
    if len(rows) < 2:
        return [0] * len(rows)
    same_start = [min(common_prefix(rows), *limits)] * len(rows)
    heads = [
        (candidate, row[:limit])
        for row, limit, candidate in zip(rows, limits, candidates, strict=True)
    ]
    counts = Counter(heads)
    same_head = [len(head[1]) if counts[head] > 1 else 0 for head in heads]

    def tokens(shared: list[int]) -> int:
        passes = {
            (candidate, row[:length])
            for row, length, candidate in zip(rows, shared, candidates, strict=True)
        }
        return sum(len(head) for _, head in passes) + sum(map(len, rows)) - sum(shared)

    best = min(same_start, same_head, key=tokens)
    return best if tokens(best) <= (1 - LEAST_SAVING) * sum(map(len, rows)) else [0] * len(rows)
