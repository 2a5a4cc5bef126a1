"""Minibatches: which examples are in one, and what an evaluation on it gives and costs."""

import json
import math

import pytest
import torch
from builders import mixed_adapters

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.failures import AllFailed
from evox_evogm.problems.minibatches import Minibatches, minibatches_for
from evox_evogm.resume.journal import to_json


def task_of(name, count, metric="exact_match"):
    examples = tuple(Example(str(i), f"{name} {i} =", str(i)) for i in range(count))
    return Task(name, "1", metric, examples)


def chosen(minibatch):
    return {task.name: [example.id for example in task.examples] for task in minibatch.tasks}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_an_epoch_has_every_example_once_in_parts_of_about_equal_size(count):
    tasks = [task_of("add", 5), task_of("pick", 13)]
    minibatches = Minibatches(tasks, count)
    epochs = []
    for epoch in range(2):
        parts = [minibatches.at(epoch * count + part) for part in range(count)]
        for task in tasks:
            ids = [id_ for part in parts for id_ in chosen(part)[task.name]]
            assert sorted(ids, key=int) == [example.id for example in task.examples]
            sizes = [len(chosen(part)[task.name]) for part in parts]
            assert max(sizes) - min(sizes) <= 1
        epochs.append([chosen(part) for part in parts])
        for part in parts:
            assert part.share == 1 / count
            for task in part.tasks:
                assert [int(example.id) for example in task.examples] == list(
                    part.places[task.name]
                )
    assert epochs[0] != epochs[1]
    assert chosen(Minibatches(tasks, count).at(1)) == epochs[0][1]


def test_one_minibatch_is_all_examples_in_their_order():
    tasks = [task_of("add", 5)]
    for number in range(3):
        assert Minibatches(tasks, 1).at(number) == (tasks, {}, 1.0)


@pytest.mark.parametrize(
    ("budget", "examples", "count"),
    [
        (160, [13] * 13, 1),  # 53 steps on all examples
        (60, [30] * 11, 3),  # 50 gradients for 60 evaluations: each counts as 1.2 at most
        (40, [13] * 13, 4),
        (15, [13] * 13, 6),  # 10 would leave fewer than 2 examples of a task in each
        (15, [7] * 23, 3),
        (15, [20] * 5, 4),  # 10 would leave fewer than 24 examples in each
        (40, [3, 200], 3),  # no task is left without examples
        (40, [8], 1),
        (60, [6] * 11, 2),
        (None, [30] * 11, 1),
    ],
)
def test_a_small_budget_gets_so_many_minibatches_that_it_has_fifty_steps(budget, examples, count):
    assert minibatches_for(budget, examples) == count


def test_several_points_a_step_need_more_minibatches():
    assert minibatches_for(160, [50] * 10, pop_size=4) == 4


@pytest.fixture
def make_problem(model, tokenizer, make_adapter):
    folders = mixed_adapters(make_adapter)

    def make(tasks, **settings):
        settings = {"tokenizer": tokenizer, "objectives": "gradients", **settings}
        return LoRAMergeProblem(model, folders, tasks, **settings)

    return make


def test_an_evaluation_is_that_of_a_problem_with_these_examples_alone(make_problem):
    tasks = [task_of("add", 4), task_of("sum", 6, "gold_log_probability")]
    problem = make_problem(tasks, minibatches=2)
    point = torch.tensor([[0.3, -0.2, 0.7, 0.1]])
    n = problem.n_coefficients
    for number in range(3):
        found = problem.evaluate(point + number)[0]
        part = Minibatches(tasks, 2).at(number)
        alone = make_problem(part.tasks).evaluate(point + number)[0]
        torch.testing.assert_close(found[-n:], alone[-n:])
        torch.testing.assert_close(found[0], alone[0])
        columns = found[1:-n]
        places = [*part.places["add"], *(4 + place for place in part.places["sum"])]
        torch.testing.assert_close(columns[places], alone[1:-n])
        assert int(columns.isnan().sum()) == 10 - len(places)
    assert problem.budget_used == 4.5


def test_gradients_of_an_epoch_have_the_gradient_on_all_examples_as_their_mean(make_problem):
    tasks = [task_of("add", 4), task_of("sum", 6, "gold_log_probability")]
    point = torch.tensor([[0.3, -0.2, 0.7, 0.1]])
    whole = make_problem(tasks).evaluate(point)[0, -4:]
    problem = make_problem(tasks, minibatches=2)
    parts = []
    for other in (torch.full((1, 4), 9.0), torch.full((1, 4), -9.0)):
        parts.append(problem.evaluate(point)[0, -4:])
        problem.cache.clear()
        problem.evaluate(other)  # so that the point has the second minibatch
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)


def test_the_points_of_a_population_share_a_minibatch_also_where_some_are_known(make_problem):
    tasks = [task_of("add", 6)]
    pop = torch.tensor([[0.3, -0.2, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]])
    records, whole = [], make_problem(tasks, minibatches=3, candidates_at_once=1)
    whole.on_evaluations = lambda found: records.extend(one.as_record() for one in found)
    whole.evaluate(pop - 1)
    expected = whole.evaluate(pop)
    for one in (records[2:], records[4:]):
        assert {tuple(record["places"]["add"]) for record in one} <= {
            Minibatches(tasks, 3).at(1).places["add"]
        }
    again = make_problem(tasks, minibatches=3, candidates_at_once=1)
    again.load_history(json.loads(json.dumps(records[:3])))  # killed in the middle of it
    again.evaluate(pop - 1)
    torch.testing.assert_close(again.evaluate(pop), expected, rtol=0, atol=0, equal_nan=True)


def test_a_recommended_point_of_an_earlier_end_moves_no_minibatch(make_problem):
    tasks = [task_of("add", 6)]
    pop = torch.tensor([[0.3, -0.2, 0.7, 0.1]])
    records, whole = [], make_problem(tasks, minibatches=3)
    whole.on_evaluations = lambda found: records.extend(one.as_record() for one in found)
    whole.evaluate(pop)
    expected = whole.evaluate(pop + 1)
    again = make_problem(tasks, minibatches=3)
    marked = {**records[0], "coefficients": [5.0] * 4, "recommended": True}
    again.load_history([records[0], marked])
    torch.testing.assert_close(again.evaluate(pop + 1), expected, equal_nan=True)


def test_a_record_says_which_examples_its_scores_are_of():
    part = Evaluation(
        (0.5,),
        {"add": (1.0, 0.0)},
        0.1,
        margins={"add": (2.0, -1.0)},
        cost=1.5,
        places={"add": (0, 3)},
    )
    record = json.loads(json.dumps(part.as_record()))
    assert record["places"] == {"add": [0, 3]} and record["estimate"] == 0.5
    read = Evaluation.from_record(record)
    assert not read.is_whole and read.score == 0.5
    margins = read.margins_of("add", 5)
    assert margins[0] == 2 and margins[3] == -1 and math.isnan(margins[1] + margins[4])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"minibatches": 0}, "minibatches: expected a whole number of at least 1, found 0"),
        ({"minibatches": 5}, "minibatches: expected at most 4, the examples of task 'add', found"),
        (
            {"minibatches": 2, "objectives": "outcomes"},
            "minibatches: expected 1 with objectives 'outcomes', found 2: scores on different",
        ),
    ],
)
def test_what_minibatches_cannot_be_is_said(make_problem, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_problem([task_of("add", 4)], **settings)


def failing_at(problem, value):
    """A problem whose merges with this first coefficient fail."""
    differentiate = problem.scorer.differentiate

    def failing(pop, tasks):
        found = differentiate(pop, tasks)
        for row in (pop[:, 0] == value).nonzero()[:, 0].tolist():
            for derivatives in found.derivatives.values():
                derivatives[row] = torch.nan
        return found

    problem.scorer.differentiate = failing
    return problem


def test_a_merge_that_fails_moves_the_minibatches_of_a_resumed_run_as_little(make_problem):
    tasks = [task_of("add", 6)]
    pop = torch.tensor([[0.3, -0.2, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]])
    records, whole = [], failing_at(make_problem(tasks, minibatches=3), 1.3)
    whole.on_evaluations = lambda found: records.extend(one.as_record() for one in found)
    whole.evaluate(pop)
    whole.evaluate(pop + 1)
    assert [record.get("failure") is None for record in records] == [True, True, False, True]
    expected = whole.evaluate(pop + 2)
    again = make_problem(tasks, minibatches=3)
    again.load_history(json.loads(json.dumps(to_json(records[:4]))))
    torch.testing.assert_close(again.evaluate(pop + 2), expected, equal_nan=True)


def test_a_merge_that_fails_alone_does_not_end_a_search_that_has_scores(make_problem):
    problem = failing_at(make_problem([task_of("add", 6)], minibatches=3), 1.3)
    point = torch.tensor([[0.3, -0.2, 0.7, 0.1]])
    problem.evaluate(point)
    assert problem.evaluate(point + 1)[0, 0] == -torch.inf
    with pytest.raises(AllFailed):
        failing_at(make_problem([task_of("add", 6)], minibatches=3), 1.3).evaluate(point + 1)
