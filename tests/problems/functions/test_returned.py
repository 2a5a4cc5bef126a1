"""What a function may return, and what is refused in a sentence."""

import math

import numpy as np
import pytest
import torch

from evox_evogm.problems.functions.returned import parse_population, parse_returned


@pytest.mark.parametrize(
    ("value", "scores"),
    [
        (0.5, [0.5]),
        (True, [1.0]),
        (torch.tensor(2), [2.0]),
        (np.float32(0.25), [0.25]),
        ([1, 0.5], [1.0, 0.5]),
        ((True, False), [1.0, 0.0]),
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
        ([torch.tensor(1.0), np.int64(2)], [1.0, 2.0]),
    ],
)
def test_numbers_and_lists_of_numbers_are_scores(value, scores):
    assert parse_returned(value) == (scores, None)


def test_a_table_has_margins_too():
    found = parse_returned({"scores": [1, 0], "margins": [0.3, -2]})
    assert found == ([1.0, 0.0], [0.3, -2.0])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("good", "found 'good'"),
        (None, "found None"),
        ([], "found an empty list"),
        (["a", 1], "found a list of 2 beginning with ['a']"),
        (torch.zeros(2, 3), "found a list of 2 beginning with"),
        (1j, "found 1j"),
        (math.nan, "finite, found nan"),
        ([1.0, math.inf], "finite, found inf in place 1"),
        ({"score": 1}, "found a table with score"),
        ({"scores": [1, 0], "margins": [1]}, "a margin for each of 2 scores, found 1"),
        ({"scores": [1], "margins": [0.0]}, "found score 1.0 and margin 0.0 in place 0"),
        ({"scores": [0.5], "margins": [1.0]}, "found score 0.5 and margin 1.0 in place 0"),
    ],
)
def test_all_else_is_refused_in_a_sentence(value, found):
    with pytest.raises(ValueError) as error:
        parse_returned(value)
    assert str(error.value).startswith("expected ") and found in str(error.value)


def test_a_population_returns_an_entry_for_each_merge():
    assert parse_population(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 2) == [[1.0, 2.0], [3.0, 4.0]]
    assert parse_population([0.5, 1], 2) == [0.5, 1]
    table = {"scores": [[1], [0]], "margins": [[2.0], [-1.0]]}
    assert parse_population(table, 2) == [
        {"scores": [1], "margins": [2.0]},
        {"scores": [0], "margins": [-1.0]},
    ]
    for value in ([1.0], 0.5, "ab", torch.zeros(3)):
        with pytest.raises(ValueError, match="expected an entry for each of 2 merges, found"):
            parse_population(value, 2)
