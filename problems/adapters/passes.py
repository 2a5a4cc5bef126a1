"""Forward passes over texts of any length: those of one length together, without padding."""

from collections.abc import Iterator, Sequence

import torch

PASS_TOKENS = 2048  # of a pass with more than one text


def passes(
    texts: Sequence[Sequence[int]], *, together: bool = True
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Put texts of the same length together.

    Padding would need to know how a base takes it. Short texts, whose passes cost more than their
    arithmetic, are often of few lengths; for long ones it matters less.

    :param texts: tokens.
    :param together: whether a pass may have more than one text.
    :return: for each pass the places of its texts among all, and their tokens, a `(P, T)` tensor.
    """
    by_length: dict[int, list[int]] = {}
    for place, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(place)
    for length, places in by_length.items():
        count = max(1, PASS_TOKENS // max(1, length)) if together else 1
        for start in range(0, len(places), count):
            chosen = places[start : start + count]
            yield chosen, torch.tensor([list(texts[place]) for place in chosen])
