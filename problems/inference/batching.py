"""Batches of rows of tokens: rows of similar length, within a number of tokens and of bytes.

Rows are padded on the left, so that the scored tokens stand at the end of every row.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.inference.batch_sizes import PASS_TOKENS
from evox_evogm.problems.inference.capabilities import count_layers
from evox_evogm.problems.to_device import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a forward pass takes, as estimated.

    :param token: of each token in the pass.
    :param cached: of each token in the cache.
    :param logits: of the logits at each position.
    """

    token: int
    cached: int
    logits: int


@dataclass(frozen=True)
class Batching:
    """How rows become batches. A single row may go beyond the limits.

    :param batch_tokens: the most tokens, padding included, in one forward pass.
    :param max_memory: the most bytes that a forward pass takes beyond the model.
    :param memory: the estimate of these bytes.
    :param pad_id: the token that fills rows up.
    :param pad_rows: whether rows of different length may share a batch.
    :param batch_rows: whether rows may share a batch at all.
    :param decode_rows: the most rows that decode together, whose prompts run in several passes if
        they have more tokens; None if all prompts of a batch run in one pass.
    :param pass_tokens: what a pass costs beside its tokens, in tokens.
    :param step_tokens: what a step of decoding costs beside its rows, in tokens.
    """

    batch_tokens: int
    max_memory: int
    memory: MemoryEstimate
    pad_id: int
    pad_rows: bool = True
    batch_rows: bool = True
    decode_rows: int | None = None
    pass_tokens: int = PASS_TOKENS
    step_tokens: int = 0

    def split(
        self,
        rows: Sequence[Sequence[int]],
        scored: Sequence[int],
        cached: int | None = None,
        added: int = 0,
        steps: int = 0,
    ) -> Iterator[list[int]]:
        """Split rows into batches of similar length within the limits.

        :param rows: the tokens of each row that the pass runs.
        :param scored: at how many positions of each row logits are needed.
        :param cached: how many other tokens of each row the cache holds in the end; None without
            a cache.
        :param added: how many tokens each row gets before its last pass.
        :param steps: how many steps of decoding with a cache follow.
        :return: the numbers of the rows of each batch.
        """
        for run in self._runs(rows, steps):
            width = len(rows[run[0]]) + added
            in_cache = 0 if cached is None else width + cached
            batch: list[int] = []
            logits = 0
            for row in run:
                size = len(batch) + 1
                together = logits + scored[row]
                if batch and not self._may_grow(size, width, in_cache, together, steps):
                    yield batch
                    batch = []
                    logits = 0
                batch.append(row)
                logits += scored[row]
            yield batch

    def _runs(self, rows: Sequence[Sequence[int]], steps: int) -> list[list[int]]:
        """Row numbers, longest first, in runs of rows that may share batches."""
        if not self.pad_rows:
            return runs_of_equal_lengths(rows)
        cost = RunCost(self.batch_tokens, self.pass_tokens)
        if steps and self.decode_rows is not None:
            cost = replace(cost, step_tokens=steps * self.step_tokens, decode_rows=self.decode_rows)
        return runs_of_similar_lengths(rows, cost)

    def _may_grow(self, size: int, width: int, in_cache: int, logits: int, steps: int) -> bool:
        """Whether a batch may have `size` rows, more than one.

        :param width: C, the tokens of each row.
        :param in_cache: the cached tokens of each row.
        :param logits: the scored positions of all rows.
        :param steps: how many steps of decoding follow.
        """
        if not self.batch_rows:
            return False
        in_pass = size
        fits = size * width <= self.batch_tokens
        if steps and self.decode_rows is not None:
            in_pass = min(size, self.rows_of_pass(width))
            fits = size <= self.decode_rows
        memory = in_pass * width * self.memory.token + size * in_cache * self.memory.cached
        memory += logits * self.memory.logits
        return fits and memory <= self.max_memory

    def rows_of_pass(self, width: int) -> int:
        """How many prompts of so many tokens one pass runs."""
        return max(1, self.batch_tokens // width)

    def pad_left(
        self, rows: Sequence[Sequence[int]], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens `(N, C)` of N rows, and a mask `(N, C)` that is 0 at the padding."""
        width = max(len(row) for row in rows)
        tokens = []
        mask = []
        for row in rows:
            padding = width - len(row)
            tokens.append([self.pad_id] * padding + list(row))
            mask.append([0] * padding + [1] * len(row))
        return to_device(torch.tensor(tokens), device), to_device(torch.tensor(mask), device)


@dataclass(frozen=True)
class RunCost:
    """What a run of rows costs, in tokens.

    :param batch_tokens: the most tokens of a pass.
    :param pass_tokens: what each pass costs beside its tokens.
    :param step_tokens: what all steps of a batch that decodes cost beside their rows.
    :param decode_rows: the most rows of such a batch; None where nothing is decoded.
    """

    batch_tokens: int
    pass_tokens: int = PASS_TOKENS
    step_tokens: int = 0
    decode_rows: int | None = None

    def __call__(self, rows: int, width: int) -> float:
        """The cost of so many rows that are padded to `width` tokens."""
        tokens = rows * width
        cost = tokens + self.pass_tokens * -(-tokens // self.batch_tokens)
        if self.decode_rows is not None:
            cost += self.step_tokens * -(-rows // self.decode_rows)
        return cost


def runs_of_similar_lengths(rows: Sequence[Sequence[int]], cost_of: RunCost) -> list[list[int]]:
    """Row numbers, longest first, in runs for which padding and the cost of passes are least.

    A run is padded to its first length, and later split into passes. Rows of the same tokens stand
    together: several candidates may have them.
    """
    order = sorted(range(len(rows)), key=lambda row: (-len(rows[row]), rows[row]))
    lengths = [len(rows[row]) for row in order]
    borders = places_of_new_lengths(lengths)
    # Dynamic programming over the first `end` different lengths.
    costs = [0.0]  # the least cost in tokens
    last_starts = [0]  # where the last run of the cheapest cut starts
    for end in range(1, len(borders)):
        best_cost = math.inf
        best_start = 0
        for start in range(end):
            count = borders[end] - borders[start]
            cost = costs[start] + cost_of(count, lengths[borders[start]])
            if cost < best_cost:
                best_cost = cost
                best_start = start
        costs.append(best_cost)
        last_starts.append(best_start)
    runs = []
    end = len(borders) - 1
    while end > 0:
        start = last_starts[end]
        runs.append(order[borders[start] : borders[end]])
        end = start
    runs.reverse()
    return runs


def runs_of_equal_lengths(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Row numbers, longest first, in runs of rows of the same length."""
    order = sorted(range(len(rows)), key=lambda row: (-len(rows[row]), rows[row]))
    borders = places_of_new_lengths([len(rows[row]) for row in order])
    return [order[start:end] for start, end in pairwise(borders)]


def places_of_new_lengths(lengths: Sequence[int]) -> list[int]:
    """The places where a length differs from the one before it, and the end."""
    places = []
    for place, length in enumerate(lengths):
        if place == 0 or length != lengths[place - 1]:
            places.append(place)
    return [*places, len(lengths)]


def estimate_memory(model: "PreTrainedModel") -> MemoryEstimate:
    """Estimate the memory of forward passes.

    - One layer is alive at a time, with a few tensors of its largest width.
    - Keys and values are kept of all layers, twice while a cache grows.
    - Logits exist in the model's dtype and in float32, and in passing once more.
    """
    output = model.get_output_embeddings()
    size = model.dtype.itemsize
    hidden = output.weight.shape[1]
    widths = []
    for module in model.modules():
        if is_projection(module) and module is not output:
            widths.append(max(width_of(module)))
    widest = max(widths, default=hidden)
    depth = count_layers(model) or 1
    return MemoryEstimate(
        token=8 * widest * size,
        cached=4 * depth * hidden * size,
        logits=(size + 8) * output.weight.shape[0],
    )


def is_projection(module: torch.nn.Module) -> bool:
    """Whether a module is a matrix product: Linear, or the Conv1D of GPT-2."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def width_of(module) -> tuple[int, int]:
    """Inputs and outputs of a projection. The weight of a quantized one has another shape."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return module.weight.shape[0], module.nf
