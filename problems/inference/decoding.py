"""Greedy decoding of a batch of prompts."""

from collections.abc import Callable, Collection

import torch

from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.prefix_cache import PreparedBatch


def decode_greedily(
    batch: PreparedBatch,
    forward: Forward,
    replies: list[list[int]],
    *,
    end_tokens: Collection[int],
    is_complete: Callable[[int], bool],
) -> None:
    """Append greedy tokens to the replies to a batch of prompts, without the end of text.

    Rows that have ended leave the batch and its cache.

    :param batch: the prompts. The number of a row is that of its reply.
    :param replies: the tokens of every reply.
    :param end_tokens: tokens that end a reply.
    :param is_complete: takes the number of a reply; true if it gets no more tokens.
    :raises ArithmeticError: if a model gives NaN.
    """
    rows = batch.rows
    candidates = batch.candidates
    tokens = batch.tokens  # (N, C)
    mask = batch.mask  # (N, cached + C)
    cache = forward.new_cache() if batch.cache is None else batch.cache
    while True:
        logits = forward(candidates, tokens, mask, [1] * len(rows), cache)  # (N, V)
        chosen = most_likely_tokens(logits)  # (N,)
        running = []
        for index, token in enumerate(chosen.tolist()):
            if token in end_tokens:
                continue
            replies[rows[index]].append(token)
            if not is_complete(rows[index]):
                running.append(index)
        if not running:
            return
        if len(running) < len(rows):
            kept = torch.tensor(running, device=forward.device)
            cache.batch_select_indices(kept)
            chosen = chosen[kept]
            mask = mask[kept]
            rows = [rows[index] for index in running]
            candidates = [candidates[index] for index in running]
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)


def most_likely_tokens(logits: torch.Tensor) -> torch.Tensor:
    """The tokens `(N,)` with the largest of the logits `(N, V)`.

    :raises ArithmeticError: if a largest logit is NaN.
    """
    chosen = logits.argmax(-1)
    if logits.gather(-1, chosen[:, None]).isnan().any():
        raise ArithmeticError("expected logits, found NaN")
    return chosen
