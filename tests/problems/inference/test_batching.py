"""Batches of rows: within the limits, and cut where padding and the cost of passes are least."""

import random

import pytest
import torch
from builders import build_model

from evox_evogm.problems.inference.batch_sizes import PASS_TOKENS
from evox_evogm.problems.inference.batching import (
    Batching,
    MemoryEstimate,
    RunCost,
    estimate_memory,
    runs_of_similar_lengths,
)


def rows_of_lengths(*lengths):
    return [tuple(range(length)) for length in lengths]


def test_the_memory_of_a_pass_is_estimated_from_the_widths_of_the_model():
    memory = estimate_memory(build_model())  # width 16, MLP 32, two layers, vocabulary 257, float32
    assert memory.token == 8 * 32 * 4
    assert memory.cached == 4 * 2 * 16 * 4
    assert memory.logits == (4 + 8) * 257


@pytest.mark.parametrize("others_in_cache", [0, 40])
@pytest.mark.parametrize("limit", [1, 10**5, 10**6])
def test_batches_stay_within_the_memory(others_in_cache, limit):
    memory = MemoryEstimate(token=1024, cached=512, logits=3084)
    rows = rows_of_lengths(30, 29, 29, 12, 12, 11, 3)
    batching = Batching(batch_tokens=10**6, max_memory=limit, memory=memory, pad_id=0)
    batches = list(batching.split(rows, [2] * len(rows), others_in_cache))
    assert sorted(sum(batches, [])) == list(range(7))
    for batch in batches:
        width = max(len(rows[row]) for row in batch)
        in_cache = width + others_in_cache
        need = len(batch) * (width * memory.token + in_cache * memory.cached + 2 * memory.logits)
        assert need <= limit or len(batch) == 1


@pytest.mark.parametrize("batch_tokens", [1, 30, 60, 10**6])
def test_batches_stay_within_the_number_of_tokens(batch_tokens):
    rows = rows_of_lengths(30, 29, 29, 12, 12, 11, 3)
    batching = Batching(batch_tokens, 2**40, MemoryEstimate(1, 1, 1), pad_id=0)
    batches = list(batching.split(rows, [1] * len(rows)))
    assert sorted(sum(batches, [])) == list(range(7))
    for batch in batches:
        width = max(len(rows[row]) for row in batch)
        assert len(batch) * width <= batch_tokens or len(batch) == 1
    assert len(batches) == {1: 7, 30: 5, 60: 3, 10**6: 1}[batch_tokens]


def test_rows_are_padded_on_the_left():
    batching = Batching(100, 2**30, MemoryEstimate(1, 1, 1), pad_id=9)
    tokens, mask = batching.pad_left([(1, 2, 3), (4,)], torch.device("cpu"))
    assert tokens.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def cost_of_runs(runs, rows, batch_tokens):
    """Padded tokens, and `PASS_TOKENS` for each pass of a run."""
    cost = 0
    for run in runs:
        tokens = len(run) * max(len(rows[row]) for row in run)
        cost += tokens + PASS_TOKENS * -(-tokens // batch_tokens)
    return cost


def least_cost_of_any_cut(order, rows, batch_tokens):
    """Try every place to cut rows in an order, but never between rows of the same length."""
    if not order:
        return 0
    costs = []
    for end in range(1, len(order) + 1):
        is_within = end < len(order) and len(rows[order[end]]) == len(rows[order[end - 1]])
        if not is_within:
            rest = least_cost_of_any_cut(order[end:], rows, batch_tokens)
            costs.append(cost_of_runs([order[:end]], rows, batch_tokens) + rest)
    return min(costs)


@pytest.mark.parametrize("batch_tokens", [1, 40, 300])
def test_runs_cost_as_little_as_the_best_of_all_cuts(batch_tokens):
    numbers = random.Random(0)
    for _ in range(30):
        lengths = [numbers.randrange(1, 400) for _ in range(numbers.randrange(8))]
        rows = rows_of_lengths(*lengths, *lengths[:2])
        runs = runs_of_similar_lengths(rows, RunCost(batch_tokens))
        order = sum(runs, [])
        assert sorted(order) == list(range(len(rows)))
        ordered_lengths = [len(rows[row]) for row in order]
        assert ordered_lengths == sorted(ordered_lengths, reverse=True)
        least = least_cost_of_any_cut(order, rows, batch_tokens)
        assert cost_of_runs(runs, rows, batch_tokens) == least


def test_rows_of_the_same_tokens_stand_together():
    rows = [(1, 2), (3, 4), (1, 2), (5,), (3, 4)]
    assert runs_of_similar_lengths(rows, RunCost(2048)) == [[0, 2, 1, 4, 3]]
