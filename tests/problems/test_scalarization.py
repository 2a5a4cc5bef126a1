"""Scores of tasks as one score: means, the worst task, and constraints by Deb's rules."""

import math

import pytest
import torch
from scipy import stats

from evox_evogm.problems import Constraint, Example, Objective, Task
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.objectives import mean_objective, task_objectives
from evox_evogm.problems.tasks.margins import outcomes_of, smoothed_gradient

SCORES = {"add": 0.25, "pick": 0.75}


def task(name, metric="exact_match", count=2):
    choices = (("1", "one"), ("2", "two")) if metric == "abstain_qa" else ()
    examples = tuple(Example(str(i), f"{i}=", "1", choices) for i in range(count))
    return Task(name, "1", metric, examples)


TASKS = [task("add"), task("pick", count=4)]


def test_the_mean_weighs_tasks():
    assert Objective().value(SCORES) == 0.5
    assert Objective(weights={"pick": 3}).value(SCORES) == (0.25 + 3 * 0.75) / 4
    assert Objective("worst").value(SCORES) == 0.25


def test_the_harmonic_mean_is_scipys():
    assert Objective("harmonic").value(SCORES) == pytest.approx(stats.hmean([0.25, 0.75]))
    weighted = Objective("harmonic", {"add": 2.0, "pick": 5.0}).value(SCORES)
    assert weighted == pytest.approx(stats.hmean([0.25, 0.75], weights=[2, 5]))
    assert Objective("harmonic").value({"add": 0.0, "pick": 1.0}) == 0.0


def test_outcomes_have_the_weights_of_their_tasks():
    shares = Objective(weights={"pick": 3}).shares(TASKS)
    weights, _, _ = outcomes_of(TASKS, shares)
    assert weights.tolist() == pytest.approx([1 / 8, 1 / 8, *[3 / 16] * 4])
    assert outcomes_of(TASKS)[0].tolist() == pytest.approx([1 / 4, 1 / 4, *[1 / 8] * 4])


def test_merges_that_break_a_constraint_are_below_all_others():
    objective = Objective(constraints=(Constraint("add", least=0.4),)).for_tasks(TASKS)
    keeps = objective.score({"add": 0.4, "pick": 0.0})
    nearly = objective.score({"add": 0.375, "pick": 1.0})
    far = objective.score({"add": 0.0, "pick": 1.0})
    assert keeps == 0.2 and nearly == pytest.approx(-0.025) and far == pytest.approx(-0.4)
    assert Objective(constraints=objective.constraints).violation(SCORES) == pytest.approx(0.15)


def test_negative_scores_stay_above_those_that_break_a_constraint_and_in_order():
    tasks = [task("add", "gold_log_probability"), task("pick")]
    objective = Objective(constraints=(Constraint("pick", least=0.5),)).for_tasks(tasks)
    kept = [objective.score({"add": nats, "pick": 0.5}) for nats in (-1000.0, -3.0, -1.0, 0.0)]
    broken = objective.score({"add": 0.0, "pick": 0.49})
    assert kept == sorted(kept) and len(set(kept)) == 4 and broken < kept[0]


def test_constraints_follow_from_the_models_that_they_compare_with():
    references = {
        "base": [{"add": 0.5}],
        "best_expert": [{"add": 0.3}, {"add": math.nan}, {"add": 0.8}],
        "average": [{"add": 0.6}],
    }
    for against, least in (("base", 0.49), ("best_expert", 0.79), ("average", 0.59)):
        found = Constraint("add", against, lose=0.01).resolve(references)
        assert found.least == pytest.approx(least) and found.against == against
    assert Constraint("add", least=0.1).resolve({}).least == 0.1


def test_searches_see_the_objective_and_every_task_the_penalty():
    objective = Objective("worst", constraints=(Constraint("add", least=0.3),)).for_tasks(TASKS)
    scores = {"add": (0.0, 0.5), "pick": (1.0, 1.0, 1.0, 0.0)}
    evaluation = Evaluation((0.5,), scores, 0.1, objective=objective)
    assert mean_objective(evaluation, TASKS) == pytest.approx(-0.05)
    assert task_objectives(evaluation, TASKS) == pytest.approx([-0.05, -0.05])
    plain = Evaluation((0.5,), scores, 0.1, objective=Objective("worst"))
    assert plain.as_record()["score"] == 0.25
    assert task_objectives(plain, TASKS) == [0.25, 0.75]


@pytest.mark.parametrize("right", range(1, 101))
def test_a_constraint_is_kept_by_what_loses_exactly_as_much(right):
    """Means of 100 examples in float32, as a search has them, against counts."""
    base, one_less, two_less = (
        float(torch.tensor([1.0] * count + [0.0] * (100 - count)).mean())
        for count in (right, right - 1, max(right - 2, 0))
    )
    found = Constraint("add", "base", lose=0.01).resolve({"base": [{"add": base}]})
    assert found.violation({"add": base}) == found.violation({"add": one_less}) == 0
    if right > 1:
        assert found.violation({"add": two_less}) == pytest.approx(0.01, abs=1e-6)


def test_a_failed_merge_is_finite_and_below_all_that_break_constraints():
    constraints = (Constraint("add", least=0.75), Constraint("pick", least=0.5))
    objective = Objective(constraints=constraints).for_tasks(TASKS)
    assert objective.score({"add": 0.0, "pick": 0.0}) == -1.25  # the worst that did not fail
    assert objective.failed(TASKS) == -2.25
    assert Objective().failed(TASKS) == -1
    abstains = [task("add", "abstain_qa"), task("pick")]
    assert Objective().for_tasks(abstains).failed(abstains) == -2
    nats = [task("add", "gold_log_probability"), task("pick")]
    assert Objective().failed(nats) == -1e6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective("worse"), "found 'worse'; did you mean 'worst'"),
        (lambda: Objective("worst", {"add": 2}), "expected no weights with worst"),
        (lambda: Objective(weights={"add": 0}), "weight of task 'add' to be a number above 0"),
        (lambda: Objective(weights={"ad": 2}).for_tasks(TASKS), "'ad'; did you mean 'add'"),
        (lambda: Constraint("add"), "expected against or least, found neither"),
        (lambda: Constraint("add", "bass"), "found 'bass'"),
        (lambda: Constraint("add", "base", -1), "expected lose to be a number of at least 0"),
        (
            lambda: Objective(constraints=(Constraint("adds", "base"),)).for_tasks(TASKS),
            "expected a constraint of one of the tasks add, pick, found 'adds'",
        ),
        (
            lambda: Objective("harmonic").for_tasks([task("add", "gold_log_probability")]),
            "expected scores of at least 0 with harmonic",
        ),
        (
            lambda: Objective("harmonic").for_tasks([task("add", "abstain_qa")]),
            "expected scores of at least 0 with harmonic, found the metric abstain_qa",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_gradients_have_the_weights_of_their_tasks():
    tasks = [task("add", "gold_log_probability"), task("pick", "gold_log_probability", 4)]
    derivatives = {"add": torch.ones(1, 2, 3), "pick": torch.full((1, 4, 3), 2.0)}
    margins = {"add": torch.zeros(1, 2), "pick": torch.zeros(1, 4)}
    shares = Objective(weights={"pick": 3}).shares(tasks)
    weighted = smoothed_gradient(margins, derivatives, tasks, shares)
    assert weighted.tolist() == [[(1 + 3 * 2) / 4] * 3]
    assert smoothed_gradient(margins, derivatives, tasks).tolist() == [[1.5] * 3]
