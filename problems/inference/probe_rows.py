"""The rows of tokens on which the probe compares passes, from prompts of the run."""

import math
from collections.abc import Sequence

from evox_evogm.problems.inference.capabilities import text_config

STEPS = 4  # positions of each row that are compared; all but the first are decoded one by one
TAIL = 2 * STEPS  # last tokens of the long row in which its fork differs
LEAST_TOKENS = 24  # of the long row, so that most of its tokens can be shared
MOST_TOKENS = 64  # of the long row: the probe makes about a dozen passes over it
MOST_TOKENS_FOR_WINDOW = 1024  # where the long row has to be longer than a window


def rows_of(
    prompts: Sequence[tuple[int, ...]], limits: Sequence[int], model
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The rows `short`, `other`, `long` and `fork` of the probe.

    The long row is cut, but to more tokens than any limit that the longest prompt exceeds, if that
    is at most `MOST_TOKENS_FOR_WINDOW`.

    :param limits: windows and contexts of the base.
    """
    longest = max(prompts, key=len)
    most = MOST_TOKENS
    for limit in limits:
        if limit < len(longest) and limit <= MOST_TOKENS_FOR_WINDOW:
            most = max(most, limit + TAIL)
    positions = getattr(text_config(model), "max_position_embeddings", None) or math.inf
    long = longest
    while len(long) < min(LEAST_TOKENS, positions):
        long = long + longest
    long = long[: int(min(most, positions))]
    shortest = min(prompts, key=len)
    short = (shortest + longest)[: max(len(shortest), STEPS) + STEPS]
    if len(short) >= len(long):
        short = short[: max(STEPS + 1, len(long) // 2)]
    other = tuple(reversed(short))
    if other == short:
        other = (*short[1:], long[0])
    # The fork has two tokens less, the first of which is another one.
    end = list(long[2 - TAIL :])
    end[0] = next(token for token in (*short, *long, 0, 1) if token != long[-TAIL])
    fork = (*long[:-TAIL], *end)
    return short, other, long, fork
