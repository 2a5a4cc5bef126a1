"""How the evaluation of a population is cut into portions."""

import pytest
from builders import build_model, build_tokenizer

from evox_evogm.problems import Example, Task, fitness_tasks, for_population
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.portions import blocks_of, chunks_of, cut_work, portions_of, units_of
from evox_evogm.problems.tasks.spearman import SpearmanTask

pytestmark = pytest.mark.language_model


@pytest.fixture(scope="module")
def model():
    return LanguageModel(build_model(), build_tokenizer())


def sums(name, count, metric="gold_log_probability", length=100):
    """Questions of `length` characters, which are as many tokens."""
    examples = [Example(str(i), f"{i:0>{length}}", str(2 * i)) for i in range(count)]
    return Task(name, "1", metric, tuple(examples), max_new_tokens=5)


def pairs_of(portions, tasks):
    """Every candidate and example of some portions."""
    pairs = []
    for portion in portions:
        for name, (first, end) in portion.examples.items():
            pairs += [(row, name, place) for row in portion.rows for place in range(first, end)]
    return pairs


@pytest.mark.parametrize("candidates", [1, 3, 50])
@pytest.mark.parametrize("mode", ["unmerged", "merged"])
def test_every_example_of_every_candidate_is_in_one_portion(model, candidates, mode):
    tasks = [sums("first", 13), sums("second", 4, length=300)]
    modes = dict.fromkeys(["first", "second"], mode)
    portions = cut_work(tasks, candidates, model, modes)
    expected = [(row, "first", place) for row in range(candidates) for place in range(13)]
    expected += [(row, "second", place) for row in range(candidates) for place in range(4)]
    assert sorted(pairs_of(portions, tasks)) == sorted(expected)


def test_three_candidates_make_work_for_eight_ranks(model):
    task = sums("first", 40)
    for mode in ("unmerged", "merged"):
        assert len(cut_work([task], 3, model, {"first": mode})) == 24
    # 3 candidates, 40 questions of 100 tokens each, in 24 portions
    unmerged = cut_work([task], 3, model, {"first": "unmerged"})
    assert {portion.rows for portion in unmerged} == {(0, 1, 2)}
    merged = cut_work([task], 3, model, {"first": "merged"})
    assert [portion.rows for portion in merged] == 8 * [(0,)] + 8 * [(1,)] + 8 * [(2,)]
    assert merged[0].examples == {"first": (0, 5)}


def test_few_examples_are_shared_by_candidates(model):
    portions = cut_work([sums("first", 2)], 60, model, {"first": "unmerged"})
    assert len(portions) == 24
    assert {len(portion.rows) for portion in portions} == {5}


def test_small_work_is_cut_into_few_portions_and_large_work_into_many():
    assert portions_of(100, 24) == 1
    assert portions_of(512 * 5, 24) == 5
    assert portions_of(100_000, 24) == 24
    assert portions_of(8192 * 100, 24) == 100


def test_tokens_that_are_generated_count(model):
    (unit, *_) = units_of(sums("first", 3, "exact_match"), model)
    assert unit.tokens == 100 + 5


def test_chunks_have_about_as_many_tokens(model):
    units = units_of(sums("long", 3, length=300), model) + units_of(sums("short", 9), model)
    assert chunks_of(units, 3) == [
        {"long": (0, 2)},
        {"long": (2, 3), "short": (0, 3)},
        {"short": (3, 9)},
    ]


def test_a_task_that_is_scored_as_a_whole_stays_whole(model):
    examples = tuple(Example(str(i), f"{i:0>100}", str(i)) for i in range(9))
    task = SpearmanTask("order", "1", "spearman", examples)
    for mode in ("unmerged", "merged"):
        for portion in cut_work([task], 3, model, {"order": mode}):
            assert portion.examples == {"order": (0, 9)}


def test_a_function_gets_a_merge_whole_or_the_population(model):
    @for_population
    def score_all(population):
        return [0.0]

    (one, _), (all_at_once, _) = (
        fitness_tasks(lambda merge: 0.0, name="one"),
        fitness_tasks(score_all, name="all"),
    )
    portions = cut_work([one, all_at_once], 3, model, {})
    assert [(portion.rows, *portion.examples) for portion in portions] == [
        ((0,), "one"),
        ((1,), "one"),
        ((2,), "one"),
        ((0, 1, 2), "all"),
    ]


def test_blocks_are_as_equal_as_they_can_be():
    assert blocks_of(range(7), 3) == [(0, 1, 2), (3, 4), (5, 6)]
    assert blocks_of(range(2), 3) == [(0,), (1,)]
