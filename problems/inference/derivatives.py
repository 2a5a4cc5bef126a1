"""Derivatives of what a row of tokens gives, by the coefficients of its candidate.

The base is frozen, and every row of a batch owns a copy of its candidate's coefficients. So one
backward pass through the shared forward pass gives the derivatives of all rows apart.

What a backward pass needs is kept of every token and layer. Batches are as small as that makes
them; where even one row takes too much, the layers run again during the backward pass
(`checkpointed`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from evox_evogm.problems.inference.batching import Batching, is_projection, width_of
from evox_evogm.problems.inference.capabilities import count_layers
from evox_evogm.problems.inference.shared_layers import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What is differentiated: a number for each of N continuations, from the logits of their Q tokens,
# these tokens, and how many each continuation has.
ValueOf = Callable[[torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]


def soft_margins(
    logits: torch.Tensor, targets: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """The least log-odds of a continuation's tokens, smoothed: minus the log of the sum of exp(-x).

    :param logits: a `(Q, V)` tensor, in each row the logits from which a token is predicted.
    :param targets: a `(Q,)` tensor of the tokens.
    :param lengths: the number of tokens of each of N continuations.
    :return: an `(N,)` tensor.
    """
    odds = log_odds(logits, targets)  # (Q,)
    margins = []
    for part in odds.split(list(lengths)):
        margins.append(-(-part).logsumexp(0))
    return torch.stack(margins)


def log_odds(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The log of p / (1 - p) of each target `(Q,)`, from logits `(Q, V)`."""
    gold = logits.gather(-1, targets[:, None])  # (Q, 1)
    others = logits.scatter(-1, targets[:, None], -torch.inf)
    return gold[:, 0] - others.logsumexp(-1)


def log_probabilities(
    logits: torch.Tensor, targets: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """The summed log-probability in nats of each of N continuations, an `(N,)` tensor."""
    scores = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)  # (Q,)
    return torch.stack([part.sum() for part in scores.split(list(lengths))])


def leads(
    logits: torch.Tensor, choices: Sequence[Sequence[int]], gold: Sequence[int]
) -> torch.Tensor:
    """By how much a token is ahead of other ones, in nats.

    It is its log-probability less the log of the others' summed probability, if there are any.

    :param logits: an `(N, V)` tensor.
    :param choices: for each row the tokens that are compared.
    :param gold: for each row the place of the right one among them.
    :return: an `(N,)` tensor.
    """
    found = []
    for row, tokens, place in zip(logits.log_softmax(-1), choices, gold, strict=True):
        compared = row[list(tokens)]
        others = torch.cat([compared[:place], compared[place + 1 :]])
        found.append(compared[place] - others.logsumexp(0) if len(others) else compared[place])
    return torch.stack(found)


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Logits in their dtype, or in float32 where that is coarser."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def kept_bytes(model: "PreTrainedModel") -> int:
    """Bytes that a backward pass needs of each token, as estimated.

    - Of every projection its output, and its input where that belongs to no other one.
    - Of every layer what its norms and products keep, some in float32.
    """
    output = model.get_output_embeddings()
    kept = 0
    for module in model.modules():
        if is_projection(module) and module is not output:
            inputs, outputs = width_of(module)
            kept += (inputs + outputs) * model.dtype.itemsize
    hidden = output.weight.shape[1]
    return kept + 8 * hidden * 4 * (count_layers(model) or 1)


def batching_to_differentiate(batching: Batching, model: "PreTrainedModel") -> Batching:
    """Batches that leave room for what a backward pass needs."""
    memory = batching.memory
    more = replace(memory, token=memory.token + kept_bytes(model), logits=3 * memory.logits)
    return replace(batching, memory=more)


@contextmanager
def checkpointed(model: "PreTrainedModel") -> Iterator[None]:
    """Inside the block decoder layers keep their inputs only, and run again in a backward pass.

    It does nothing where the layers of a model are not found.
    """
    found = decoder_layers(model)
    layers = [] if found is None else list(found[1])
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _run_twice(layer.forward)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward


def _run_twice(forward):
    def run(*inputs, **named):
        return checkpoint(forward, *inputs, use_reentrant=False, **named)

    return run
