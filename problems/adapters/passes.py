"""Forward passes over texts of any length: those of one length together, without padding."""

from collections.abc import Iterator, Sequence

import torch

from evox_evogm.problems.inference.forward import output_layer_on
from evox_evogm.problems.inference.language_model import LanguageModel

PASS_TOKENS = 2048  # of a pass with more than one text


def passes(texts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Put texts of the same length together, at most `PASS_TOKENS` tokens.

    There is no padding, which bases treat differently. Short texts gain most: they share few
    lengths, and a pass costs more than their arithmetic.

    :param texts: tokens.
    :return: for each pass the places of its texts among all, and their tokens, a `(P, T)` tensor.
    """
    by_length: dict[int, list[int]] = {}
    for place, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(place)
    for length, places in by_length.items():
        count = max(1, PASS_TOKENS // max(1, length))
        for start in range(0, len(places), count):
            chosen = places[start : start + count]
            yield chosen, torch.tensor([list(texts[place]) for place in chosen])


def run_pass(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """Run a model on texts of one length.

    :param tokens: a `(P, T)` tensor.
    :return: the `(P, V)` logits behind the last token of each text.
    """
    rows, width = tokens.shape
    ends = torch.arange(1, rows + 1) * width - 1
    given = {"input_ids": tokens.to(model.device), "use_cache": False}
    with output_layer_on(model.model, ends):
        logits = model.forward.run_model(given).logits
    return logits[:, -1] if logits.ndim == 3 else logits  # the output layer runs somewhere else
