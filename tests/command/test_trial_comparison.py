"""The best of several adapters against the best of several merges, compared with scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from evox_evogm.command.trial_comparison import compare_chosen


def interleave(first, second):
    """Scores whose halves are these: every other example is in the second half."""
    return [score for pair in zip(first, second, strict=True) for score in pair]


def test_each_half_compares_who_is_best_on_the_other():
    # On the first half the first adapter is best, on the second half the second one.
    one = interleave([1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0])
    other = interleave([0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0])
    merge = interleave([0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.25])
    worse_merge = [0.0] * 8
    found = compare_chosen([one, other], [worse_merge, merge])
    second_half = [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.25]  # by what the first half chose
    first_half = [0.0, 0.0, 1.0, 0.0], [0.5, 0.0, 0.0, 0.0]
    assert found.trained == pytest.approx(3 / 8) and found.merge == pytest.approx(0.75 / 8)
    p_values = [stats.ttest_rel(*half).pvalue for half in (first_half, second_half)]
    pooled = np.concatenate(second_half[:1] + first_half[:1]) - np.concatenate(
        second_half[1:] + first_half[1:]
    )
    difference, se, p = found.difference
    assert difference == pytest.approx(pooled.mean()) and se == pytest.approx(stats.sem(pooled))
    assert p == pytest.approx(min(1, 2 * min(p_values)))


def test_among_equals_a_twentieth_is_found_to_differ():
    generator = np.random.default_rng(0)
    naive = ours = 0
    for _ in range(400):
        merge, *adapters = generator.normal(size=(10, 40)).tolist()
        best = max(adapters, key=sum)
        naive += stats.ttest_rel(best, merge).pvalue < 0.05
        ours += compare_chosen(adapters, [merge]).difference.p < 0.05
    # With nine adapters the best one seems better far too often.
    assert naive > 35 and stats.binomtest(ours, 400, 0.05).pvalue > 0.01


def test_two_examples_do_not_say_what_is_chance():
    assert math.isnan(compare_chosen([[1.0, 0.0]], [[0.0, 0.0]]).difference.p)
