"""Which merges are evaluated, and which are known."""

import tracemalloc
from dataclasses import replace

import pytest
import torch

from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.evaluation_cache import EvaluationCache, coefficients_and_scales


def stacked(experts, scales) -> StackedModule:
    """A module in which the experts have a channel each."""
    rank = len(experts)
    return StackedModule(
        a=torch.zeros(rank, 3),
        b=torch.zeros(3, rank),
        coefficient=torch.tensor(experts),
        scale=torch.tensor(scales),
        embedding=False,
    )


MODULES = {"up": stacked([0, 0, 1], [2.0, 2.0, 0.5]), "down": stacked([0, 1], [2.0, 1.5])}


@pytest.fixture
def cache():
    return EvaluationCache(MODULES, torch.float32)


def evaluation(point, score=0.5, **changes) -> Evaluation:
    return Evaluation(tuple(point), {"task": (score,)}, 0.25, **changes)


def test_every_expert_counts_with_every_scale_that_it_has():
    assert coefficients_and_scales(MODULES) == ([0, 1, 1], [2.0, 0.5, 1.5])


def test_merges_that_are_in_the_cache_or_earlier_in_the_population_are_not_new(cache):
    cache.add([evaluation([0.5, 0.5])])
    pop = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    assert torch.equal(cache.unseen(pop), pop[[0, 2]])
    assert cache.unseen(pop[1:2]).shape == (0, 2)


def test_coefficients_that_round_to_the_same_weights_are_one_merge():
    half = EvaluationCache(MODULES, torch.bfloat16)
    pop = torch.tensor([[0.5, 1.0], [0.5001, 1.0], [0.6, 1.0]])
    assert torch.equal(half.unseen(pop), pop[[0, 2]])
    assert len(EvaluationCache(MODULES, torch.float32).unseen(pop)) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_an_evaluation_is_found_by_the_coefficients_that_it_was_made_for(cache, dtype):
    pop = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    cache.add([evaluation(point) for point in pop.tolist()])
    assert len(cache.unseen(pop)) == 0
    assert [found.coefficients for found in cache.find(pop)] == [tuple(p) for p in pop.tolist()]


def test_a_negative_zero_is_a_zero_and_nan_is_itself(cache):
    pop = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [torch.nan, 1.0], [torch.nan, 1.0]])
    new = cache.unseen(pop)
    assert len(new) == 2
    evaluations = [evaluation(new[0].tolist()), evaluation(new[1].tolist(), failure="broken")]
    found = cache.find(pop, evaluations)
    assert [one.failure for one in found] == [None, None, "broken", "broken"]


def test_rows_have_their_own_coefficients_and_a_new_evaluation_counts_its_seconds_once():
    cache = EvaluationCache(MODULES, torch.bfloat16)
    cache.add([evaluation([1.0, 0.0])])
    pop = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.5001, 1.0]])
    found = cache.find(pop, [evaluation([0.5, 1.0], 0.75)])
    assert [one.seconds for one in found] == [0.0, 0.25, 0.0]
    assert [one.score for one in found] == [0.5, 0.75, 0.75]
    assert [one.coefficients for one in found] == [tuple(point) for point in pop.tolist()]
    assert len(cache.unseen(pop)) == 1  # `find` keeps nothing


def test_the_history_of_an_earlier_process_is_known_except_for_failures(cache):
    records = [
        evaluation([1.0, 0.0], 0.75).as_record(),
        Evaluation((0.0, 1.0), {}, 0.1, "RuntimeError: broken").as_record(),
    ]
    cache.load_history(iter(records))
    pop = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(cache.unseen(pop), pop[1:])
    assert cache.find(pop[:1])[0].score == 0.75
    cache.load_history([])


def test_failures_of_this_process_are_known(cache):
    cache.add([Evaluation((0.0, 1.0), {}, 0.1, "RuntimeError: broken")])
    assert len(cache.unseen(torch.tensor([[0.0, 1.0]]))) == 0


def test_the_best_is_complete_and_not_of_the_population(cache):
    nothing = torch.zeros(0, 2)
    assert cache.best(nothing) is None
    cache.add([Evaluation((0.0, 1.0), {}, 0.1, "RuntimeError: broken")])
    cache.add([evaluation([0.5, 0.0], 0.9, estimate=0.8, cost=0.5)])
    assert cache.best(nothing) is None
    good, better = evaluation([1.0, 0.0], 0.5), evaluation([0.0, 2.0], 0.75)
    cache.add([good, better, replace(good, coefficients=(3.0, 0.0))])
    assert cache.best(nothing) == better
    assert cache.best(torch.tensor([[0.0, 2.0]])) == good  # the first of two that are as good


def test_a_point_that_ended_an_earlier_search_is_known_but_not_the_best(cache):
    best = {**evaluation([1.0, 2.0], 0.9).as_record(), "recommended": True}
    other = evaluation([0.5, 1.0], 0.4)
    cache.load_history([other.as_record(), best])
    nobody = torch.zeros(0, 2)
    assert not len(cache.unseen(torch.tensor([[1.0, 2.0]])))
    assert cache.best(besides=nobody) == other
    del best["recommended"]  # the search came to it
    again = EvaluationCache(MODULES, torch.float32)
    again.load_history([other.as_record(), {**best, "recommended": True}, best])
    assert again.best(besides=nobody).score == pytest.approx(0.9)


def test_a_cleared_cache_is_empty(cache):
    pop = torch.tensor([[1.0, 0.0]])
    cache.add([evaluation([1.0, 0.0])])
    cache.clear()
    assert torch.equal(cache.unseen(pop), pop) and cache.best(pop[:0]) is None


def test_scores_by_example_come_back_as_the_same_tuples(cache):
    scores = {"task": (1.0, 0.0, -0.25), "other": (0.1, 1e300, 1e-300)}
    kept = Evaluation((0.5, 1.0), scores, 0.25, margins={"task": (0.3, float("inf"))})
    cache.add([kept])
    (found,) = cache.find(torch.tensor([[0.5, 1.0]]))
    assert found == replace(kept, seconds=0.0)
    assert found.as_record() == replace(kept, seconds=0.0).as_record()
    best = cache.best(besides=torch.zeros(1, 2))
    assert best == kept and best.score == kept.score


def test_scores_by_example_take_four_bytes_each(cache):
    examples, merges = 2000, 50
    tracemalloc.start()
    for number in range(merges):
        scores = tuple(torch.rand(examples).tolist())
        cache.add([replace(evaluation((number, 0.0)), scores={"task": scores})])
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 8 * examples * merges  # 32 in tuples
