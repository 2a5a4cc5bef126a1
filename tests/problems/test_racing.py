"""Merges that are pruned before all examples have been evaluated."""

import math
import random
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

from evox_evogm.problems import Example, LoRAMergeProblem, Racing, Task
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.racing import Race, compare, in_random_order, rung_ends, tasks_of_rungs

ADD = Task(
    "add",
    "1",
    "gold_log_probability",
    tuple(Example(str(i), f"{i}+{i}=", str(2 * i)) for i in range(8)),
)
CHOICES = (("A", "yes"), ("B", "no"))
PICK = Task(
    "pick",
    "1",
    "choice_likelihood",
    tuple(Example(str(i), f"pick {i}", "A", CHOICES) for i in range(4)),
)


@pytest.fixture
def folders(make_adapter):
    return [
        make_adapter("first", seed=1),
        make_adapter("second", seed=2, r=2, target_modules=["up_proj"]),
    ]


def make_problem(model, tokenizer, folders, **settings):
    # One mode for all: what is chosen from measured rates may differ between two problems.
    settings = {"objectives": "outcomes", "mode": "unmerged", **settings}
    return LoRAMergeProblem(model, folders, [ADD, PICK], tokenizer=tokenizer, **settings)


def population(rows: int) -> torch.Tensor:
    return 3 * torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))


def plain_compare(scores, best, confidence):
    """What `compare` computes, number by number."""
    weighted = []  # per example its difference and its weight in the mean over tasks
    for name, mine in scores.items():
        for ours, theirs in zip(mine, best[name], strict=False):
            weighted.append((ours - theirs, 1 / (len(scores) * len(mine))))
    mean = sum(weight * difference for difference, weight in weighted)
    count = len(weighted)
    squares = 0.0
    for difference, weight in weighted:
        squares += weight**2 * (difference - mean) ** 2
        squares += weight**2 * mean**2 / count  # the imagined example, at the mean squared weight
    total = sum(len(best[name]) for name in scores)
    variance = squares * count / max(1, count - 1) * (1 - count / total)
    return mean, mean + NormalDist().inv_cdf(confidence) * math.sqrt(variance) < 0


def test_the_comparison_of_two_tasks_by_hand():
    """Differences -1, 0 of four examples and -1 of two: means -1/2 and -1; half of the examples."""
    best = {"a": [1.0, 1.0, 0.0, 0.0], "b": [1.0, 0.0]}
    difference, worse = compare({"a": [0.0, 1.0], "b": [0.0]}, best, 0.9)
    assert difference == pytest.approx(-0.75)
    # Weights 1/4, 1/4, 1/2; away from the mean by -1/4, 3/4, -1/4.
    squares = 0.25**2 * 0.25**2 + 0.25**2 * 0.75**2 + 0.5**2 * 0.25**2
    # An imagined example is away by 3/4, with the mean of the squared weights.
    squares += (0.25**2 + 0.25**2 + 0.5**2) / 3 * 0.75**2
    deviations = -0.75 / math.sqrt(squares * 3 / 2 * (1 - 3 / 6))
    assert deviations == pytest.approx(-2.45, abs=0.01)  # the 99.3 % point
    assert worse
    assert compare({"a": [0.0, 1.0], "b": [0.0]}, best, 0.99)[1]
    assert not compare({"a": [0.0, 1.0], "b": [0.0]}, best, 0.995)[1]


def test_comparisons_agree_with_plain_sums():
    draw = random.Random(1)
    for _ in range(200):
        best = {"a": [draw.random() for _ in range(9)], "b": [draw.random() for _ in range(5)]}
        scores = {"a": [draw.random() for _ in range(4)], "b": [draw.random() for _ in range(2)]}
        confidence = draw.uniform(0.5, 0.99)
        difference, worse = compare(scores, best, confidence)
        expected, expected_worse = plain_compare(scores, best, confidence)
        assert difference == pytest.approx(expected, abs=1e-6) and worse == expected_worse


def test_one_or_two_examples_are_no_certainty():
    best = {"a": [1.0] * 10}
    assert not compare({"a": [0.0]}, best, 0.9)[1]
    assert not compare({"a": [0.0, 0.0]}, best, 0.98)[1]
    assert compare({"a": [0.0] * 6}, best, 0.98)[1]


def test_a_merge_as_good_as_the_best_so_far_is_not_pruned():
    assert compare({"a": [1.0, 0.0]}, {"a": [1.0, 0.0, 1.0, 1.0]}, 0.5) == (0.0, False)


def test_of_merges_as_good_as_the_best_no_more_are_pruned_than_stated():
    draw, pruned, trials = random.Random(0), 0, 3000
    best = [1.0] * 40 + [0.0] * 40
    for _ in range(trials):
        other = best[:]
        draw.shuffle(other)
        pairs = list(zip(other, best, strict=True))
        draw.shuffle(pairs)
        evaluated = [mine for mine, _ in pairs[:20]]
        pruned += compare({"a": evaluated}, {"a": [theirs for _, theirs in pairs]}, 0.9)[1]
    assert 0.06 < pruned / trials < 0.12


def test_every_rung_has_its_fraction_of_every_task_and_each_example_once():
    assert rung_ends(8, (0.25, 0.5)) == [2, 4, 8] and rung_ends(1, (0.25, 0.5)) == [1, 1, 1]
    rungs = tasks_of_rungs([ADD, PICK], (0.25, 0.5))
    assert [[(task.name, len(task.examples)) for task in rung] for rung in rungs] == [
        [("add", 2), ("pick", 1)],
        [("add", 2), ("pick", 1)],
        [("add", 4), ("pick", 2)],
    ]
    examples = []
    for rung in rungs:
        examples += rung[0].examples
    assert tuple(examples) == ADD.examples


def test_rungs_and_tasks_without_examples_are_left_out():
    single = ADD.take(1)
    assert tasks_of_rungs([single], (0.25, 0.5)) == [[single]]
    first, second, third = tasks_of_rungs([single, PICK], (0.25, 0.5))
    assert first == [single, PICK.take(1)]
    assert [task.name for task in second + third] == ["pick", "pick"]


def test_a_race_drops_the_merges_that_are_worse_and_estimates_their_scores():
    """The second of three merges has 0 where the best has 1: six zeros of ten are enough."""
    task = Task("a", "1", "exact_match", tuple(Example(str(i), "?", "!") for i in range(10)))
    best = Evaluation((0.0,), {"a": (1.0,) * 10}, 0.1)
    pop = torch.tensor([[1.0], [2.0], [3.0]])
    race = Race(pop, [task], Racing(rungs=(0.6,), confidence=0.98), best)
    first, second = race.rungs
    assert [len(rung[0].examples) for rung in (first, second)] == [6, 4]
    scores = torch.ones(3, 6)
    scores[1] = 0.0
    race.add({"a": scores}, {"a": scores - 0.5})
    race.prune()
    assert race.running == [0, 2]
    rest = torch.tensor([[0.0] * 4, [1.0] * 4])
    race.add({"a": rest}, {"a": rest - 0.5})
    race.prune()  # all examples are evaluated: who is worse now has a score of its own
    assert race.running == [0, 2]
    behind, pruned, equal = race.evaluations(keep_margins=True)
    assert (behind.score, pruned.score, equal.score) == (pytest.approx(0.6), 0.0, 1.0)
    assert (behind.estimate, pruned.estimate, equal.estimate) == (None, 0.0, None)
    assert (pruned.cost, equal.cost) == (0.6, 1.0)
    assert pruned.scores == {"a": (0.0,) * 6} and pruned.margins == {"a": (-0.5,) * 6}
    assert [one.coefficients for one in (behind, pruned, equal)] == [(1.0,), (2.0,), (3.0,)]
    assert [one.margins for one in race.evaluations(keep_margins=False)] == [{}, {}, {}]


@pytest.mark.parametrize(("racing", "best"), [(None, True), (Racing(), False)])
def test_without_racing_or_a_best_merge_there_is_one_rung(racing, best):
    best = Evaluation((0.0,), {"add": (9.0,) * 8}, 0.1) if best else None
    tasks = [ADD]
    race = Race(torch.zeros(2, 1), tasks, racing, best)
    assert len(race.rungs) == 1 and race.rungs[0] is tasks
    scores = torch.zeros(2, 8)
    race.add({"add": scores}, {"add": scores})
    race.prune()
    assert race.running == [0, 1]


@pytest.mark.parametrize(
    ("odd_score", "odd_margin", "failed"),
    [
        (torch.nan, 0.0, True),
        (torch.inf, 0.0, True),
        (0.0, torch.nan, True),  # a metric may count NaN as a right answer
        (0.0, -torch.inf, False),
    ],
)
def test_a_merge_without_finite_scores_has_failed(odd_score, odd_margin, failed):
    race = Race(torch.zeros(2, 1), [ADD])
    scores, margins = torch.zeros(2, 8), torch.zeros(2, 8)
    scores[1, 3], margins[1, 3] = odd_score, odd_margin
    race.add({"add": scores}, {"add": margins})
    good, odd = race.evaluations(keep_margins=True)
    assert good.failure is None and len(good.scores["add"]) == 8
    expected = "task add: expected finite scores, found others"
    assert odd.failure == (expected if failed else None) and bool(odd.scores) != failed


def test_merges_that_are_not_pruned_have_the_scores_of_a_problem_without_racing(
    model, tokenizer, folders
):
    first, second = population(12).split([2, 10])
    plain = make_problem(model, tokenizer, folders)
    racing = make_problem(model, tokenizer, folders, racing=Racing(confidence=0.99))
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
        evaluated = int(known[row, 1:].sum())
        assert evaluation.cost == evaluated / 12 and evaluated in (3, 6, 12)
        if complete[row]:
            continue
        difference, worse = compare(evaluation.scores, best.scores, 0.99)
        assert worse and difference < 0
        assert float(found[row, 0]) == pytest.approx(best.score + difference)
        again = Evaluation.from_record(evaluation.as_record())
        assert again == replace(evaluation, seconds=again.seconds)
    used = sum(evaluation.cost for evaluation in seen)
    assert racing.budget_used == pytest.approx(used)


def test_merges_with_all_examples_in_the_first_rung_are_not_pruned(model, tokenizer, folders):
    single = ADD.take(1)
    problem = LoRAMergeProblem(model, folders, [single], tokenizer=tokenizer, racing=Racing())
    seen = []
    problem.on_evaluations = seen.extend
    for pop in population(10).split([2, 8]):
        problem.evaluate(pop)
    assert len({evaluation.score for evaluation in seen}) > 2
    assert all(evaluation.estimate is None for evaluation in seen)
    assert problem.budget_used == 10


def test_examples_have_a_random_order_that_is_always_the_same(model, tokenizer, folders):
    one = make_problem(model, tokenizer, folders, racing=Racing()).tasks
    other = make_problem(model, tokenizer, folders, racing=Racing()).tasks
    assert one == other == [in_random_order(ADD), in_random_order(PICK)]
    assert one[0] != ADD
    assert sorted(one[0].examples, key=lambda example: int(example.id)) == list(ADD.examples)
    assert make_problem(model, tokenizer, folders).tasks == [ADD, PICK]


@pytest.mark.parametrize("written", [3, 7])
def test_a_later_process_prunes_the_same_merges(model, tokenizer, folders, written):
    """Although its history has a part of the population in which the first process died."""
    first, second = population(12).split([2, 10])
    problem = make_problem(model, tokenizer, folders, racing=Racing(), candidates_at_once=1)
    seen = []
    problem.on_evaluations = seen.extend
    problem.evaluate(first)
    expected = problem.evaluate(second)
    later = make_problem(model, tokenizer, folders, racing=Racing(), candidates_at_once=1)
    later.load_history(evaluation.as_record() for evaluation in seen[:written])
    torch.testing.assert_close(later.evaluate(second), expected, equal_nan=True)


def test_settings_that_cannot_be_are_refused(model, tokenizer, folders):
    for rungs in ((0.5, 0.25), (0.0, 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match="rungs: expected rising fractions between 0 and 1"):
            Racing(rungs)
    with pytest.raises(ValueError, match=r"confidence: expected a number in \[0.5, 1\), found 1"):
        Racing(confidence=1)
    with pytest.raises(ValueError, match="racing: expected objectives mean or outcomes"):
        LoRAMergeProblem(
            model, folders, [ADD], tokenizer=tokenizer, objectives="tasks", racing=Racing()
        )
