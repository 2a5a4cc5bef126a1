"""Merges that are given up before all examples have been asked."""

import math
import random
from dataclasses import replace

import pytest
import torch

from evox_evogm.problems import DistributedProblem, Example, LoRAMergeProblem, Racing, Task
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.racing import compare, rung_ends, tasks_of_rungs

ADD = Task(
    "add",
    "1",
    "gold_log_probability",
    tuple(Example(str(i), f"{i}+{i}=", str(2 * i)) for i in range(8)),
)
PICK = Task(
    "pick",
    "1",
    "choice_likelihood",
    tuple(Example(str(i), f"pick {i}", "A", (("A", "yes"), ("B", "no"))) for i in range(4)),
)


@pytest.fixture
def folders(make_adapter):
    return [
        make_adapter("first", seed=1),
        make_adapter("second", seed=2, r=2, target_modules=["up_proj"]),
    ]


def make_problem(model, tokenizer, folders, **settings):
    return LoRAMergeProblem(
        model, folders, [ADD, PICK], tokenizer=tokenizer, objectives="outcomes", **settings
    )


def population(rows: int) -> torch.Tensor:
    return 3 * torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))


def test_the_comparison_of_two_tasks_by_hand():
    """Differences -1, 0 of four examples and -1 of two: means -1/2 and -1; half of the six examples are asked."""
    best = {"a": [1.0, 1.0, 0.0, 0.0], "b": [1.0, 0.0]}
    difference, hopeless = compare({"a": [0.0, 1.0], "b": [0.0]}, best, 0.9)
    assert difference == pytest.approx(-0.75)
    # Weights 1/4, 1/4, 1/2; away from the mean by -1/4, 3/4, -1/4, and an imagined example by 3/4 with their mean square.
    squares = (
        0.25**2 * 0.25**2
        + 0.25**2 * 0.75**2
        + 0.5**2 * 0.25**2
        + (0.25**2 + 0.25**2 + 0.5**2) / 3 * 0.75**2
    )
    assert -0.75 / math.sqrt(squares * 3 / 2 * (1 - 3 / 6)) == pytest.approx(
        -2.45, abs=0.01
    )  # the 99.3 % point
    assert hopeless
    assert compare({"a": [0.0, 1.0], "b": [0.0]}, best, 0.99)[1]
    assert not compare({"a": [0.0, 1.0], "b": [0.0]}, best, 0.995)[1]


def test_one_or_two_examples_are_no_certainty():
    best = {"a": [1.0] * 10}
    assert not compare({"a": [0.0]}, best, 0.9)[1]
    assert not compare({"a": [0.0, 0.0]}, best, 0.98)[1]
    assert compare({"a": [0.0] * 6}, best, 0.98)[1]


def test_a_merge_as_good_as_the_best_so_far_is_not_given_up():
    assert compare({"a": [1.0, 0.0]}, {"a": [1.0, 0.0, 1.0, 1.0]}, 0.5) == (0.0, False)


def test_of_merges_as_good_as_the_best_no_more_are_given_up_than_stated():
    draw, given_up, trials = random.Random(0), 0, 3000
    best = [1.0] * 40 + [0.0] * 40
    for _ in range(trials):
        other = best[:]
        draw.shuffle(other)
        pairs = list(zip(other, best, strict=True))
        draw.shuffle(pairs)
        asked = [mine for mine, _ in pairs[:20]]
        given_up += compare({"a": asked}, {"a": [theirs for _, theirs in pairs]}, 0.9)[1]
    assert 0.06 < given_up / trials < 0.12


def test_every_rung_asks_its_share_of_every_task_and_each_example_is_asked_once():
    assert rung_ends(8, (0.25, 0.5)) == [2, 4, 8] and rung_ends(1, (0.25, 0.5)) == [1, 1, 1]
    rungs = tasks_of_rungs([ADD, PICK], (0.25, 0.5))
    assert [[(task.name, len(task.examples)) for task in rung] for rung in rungs] == [
        [("add", 2), ("pick", 1)],
        [("add", 2), ("pick", 1)],
        [("add", 4), ("pick", 2)],
    ]
    asked = [
        example
        for rung in rungs
        for task in rung
        if task.name == "add"
        for example in task.examples
    ]
    assert tuple(asked) == ADD.examples


def test_who_is_not_given_up_has_the_scores_of_a_problem_without_racing(model, tokenizer, folders):
    first, second = population(12).split([2, 10])
    plain, racing = (
        make_problem(model, tokenizer, folders, racing=racing)
        for racing in (None, Racing(confidence=0.99))
    )
    plain.tasks = racing.tasks  # which have another order
    expected = plain.evaluate(first), plain.evaluate(second)
    seen = []
    racing.on_evaluations = seen.extend
    torch.testing.assert_close(racing.evaluate(first), expected[0])  # nothing to compare with
    found = racing.evaluate(second)
    known = found.isfinite()
    complete = known.all(1)
    assert 0 < int(complete.sum()) < 10
    torch.testing.assert_close(found[complete], expected[1][complete])
    torch.testing.assert_close(found[:, 1:][known[:, 1:]], expected[1][:, 1:][known[:, 1:]])
    best = seen[int(expected[0][:, 0].argmax())]
    for row, evaluation in enumerate(seen[2:]):
        asked = int(known[row, 1:].sum())
        assert evaluation.fraction_evaluated == asked / 12 and asked in (3, 6, 12)
        if not complete[row]:
            difference, hopeless = compare(evaluation.scores, best.scores, 0.99)
            assert (
                hopeless
                and float(found[row, 0]) == pytest.approx(best.score + difference)
                and difference < 0
            )
            again = Evaluation.from_record(evaluation.as_record())
            assert again == replace(evaluation, seconds=again.seconds)
    assert racing.budget_used == pytest.approx(
        sum(evaluation.fraction_evaluated for evaluation in seen)
    )


def test_who_has_been_asked_everything_by_the_first_rung_is_not_given_up(model, tokenizer, folders):
    single = Task("add", "1", "gold_log_probability", ADD.examples[:1])
    problem = LoRAMergeProblem(model, folders, [single], tokenizer=tokenizer, racing=Racing())
    seen = []
    problem.on_evaluations = seen.extend
    for pop in population(10).split([2, 8]):
        problem.evaluate(pop)
    assert len({evaluation.score for evaluation in seen}) > 2 and all(
        evaluation.estimate is None for evaluation in seen
    )
    assert problem.budget_used == 10


def test_examples_are_asked_in_an_order_of_their_own_that_is_always_the_same(
    model, tokenizer, folders
):
    one, other = (make_problem(model, tokenizer, folders, racing=Racing()).tasks for _ in range(2))
    assert (
        one == other
        and one[0] != ADD
        and sorted(one[0].examples, key=lambda e: int(e.id)) == list(ADD.examples)
    )
    assert make_problem(model, tokenizer, folders).tasks == [ADD, PICK]


@pytest.mark.parametrize("written", [3, 7])
def test_a_later_process_gives_up_the_same_merges(model, tokenizer, folders, written):
    """Although it recalls a part of the population that the first process was evaluating when it died."""
    first, second = population(12).split([2, 10])
    problem = make_problem(model, tokenizer, folders, racing=Racing(), candidates_at_once=1)
    seen = []
    problem.on_evaluations = lambda block: seen.extend(
        evaluation.as_record() for evaluation in block
    )
    problem.evaluate(first)
    expected = problem.evaluate(second)
    later = make_problem(model, tokenizer, folders, racing=Racing(), candidates_at_once=1)
    later.load_history(seen[:written])
    torch.testing.assert_close(later.evaluate(second), expected, equal_nan=True)


def test_settings_that_cannot_be_are_refused(model, tokenizer, folders):
    for rungs in ((0.5, 0.25), (0.0, 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match="rungs: expected rising shares between 0 and 1"):
            Racing(rungs)
    with pytest.raises(ValueError, match=r"confidence: expected a number in \[0.5, 1\), found 1"):
        Racing(confidence=1)
    with pytest.raises(ValueError, match='racing: expected objectives "mean" or "outcomes"'):
        LoRAMergeProblem(
            model, folders, [ADD], tokenizer=tokenizer, objectives="tasks", racing=Racing()
        )
    with pytest.raises(ValueError, match="problem: expected one without racing"):
        DistributedProblem(make_problem(model, tokenizer, folders, racing=Racing()))
