"""The logits of fast passes and of decoding, as the probe compares them with plain passes."""

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.decoding import DecodingBatch
from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.prepared_batches import PreparedBatch, prepare_batches
from evox_evogm.problems.inference.probe_rows import STEPS
from evox_evogm.problems.inference.shared_prefixes import Row

if TYPE_CHECKING:
    from evox_evogm.problems.inference.language_model import LanguageModel


def logits_of_passes(
    model: "LanguageModel", rows: Sequence[Row], able: Capabilities
) -> list[torch.Tensor]:
    """For each row the logits `(scored, V)` of its last positions, in passes that rows may share.

    :param able: what is relied on.
    """
    found = [torch.empty(0)] * len(rows)
    for batch in _batches(model, rows, able):
        logits = batch.run(_forward(model, able)).float()  # (Q, V)
        for row, part in zip(batch.rows, logits.split(batch.scored), strict=True):
            found[row] = part
    return found


def logits_of_steps(
    model: "LanguageModel",
    rows: Sequence[Row],
    able: Capabilities,
    *,
    static: bool = False,
    first_ends: int = 2,
) -> list[torch.Tensor]:
    """For each row the logits `(tokens decoded, V)` where its last tokens are decoded.

    Every row gets its own next token, whatever the logits are.

    :param rows: of which all but the last `STEPS - 1` tokens are a prompt.
    :param able: what is relied on.
    :param static: whether with a static cache.
    :param first_ends: how many tokens of the first row are decoded; `STEPS` of all others.
    """
    prompts = []
    for row in rows:
        prompt = row.tokens[: len(row.tokens) - STEPS + 1]
        prompts.append(Row(prompt, row.candidate, shareable=len(prompt) - 1))
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    for batch in _batches(model, prompts, able, STEPS - 1):
        decoding = DecodingBatch(
            batch,
            _forward(model, able),
            drop_rows=able.drop_rows,
            static_steps=STEPS - 1 if static else 0,
        )
        while decoding.rows:
            logits = decoding.next_logits()  # (R, V)
            step = len(found[decoding.rows[0]])
            running, chosen = [], []
            for index, number in enumerate(decoding.rows):
                found[number].append(logits[index].float())
                tokens = rows[number].tokens
                place = len(prompts[number].tokens) + step
                chosen.append(tokens[min(place, len(tokens) - 1)])
                if step + 1 < (first_ends if number == 0 else STEPS):
                    running.append(index)
            if not running:
                break
            decoding.append(torch.tensor(chosen, device=logits.device), running)
    return [torch.stack(steps) for steps in found]


def _batches(
    model: "LanguageModel", rows: Sequence[Row], able: Capabilities, max_new_tokens: int = 0
) -> Iterator[PreparedBatch]:
    return prepare_batches(
        rows,
        _forward(model, able),
        model.batching,
        max_new_tokens=max_new_tokens,
        capabilities=able,
    )


def _forward(model: "LanguageModel", able: Capabilities) -> Forward:
    """The forward pass of a model that relies on some capabilities."""
    forward = copy.copy(model.forward)
    forward.give_positions = able.positions
    forward.fuse_norms = able.fused_norms
    if not able.share_layers:
        forward.shared_layers = 0
    return forward
