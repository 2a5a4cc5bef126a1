"""What a search sees of an evaluation."""

from math import inf, isnan

from evox_evogm.problems import Example, Task
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.objectives import mean_objective, outcome_objectives, task_objectives


def task(name, count):
    examples = tuple(Example(str(i), f"{i}=", str(i)) for i in range(count))
    return Task(name, "1", "exact_match", examples)


TASKS = [task("add", 2), task("pick", 4)]
SCORES = {"add": (1.0, 0.0), "pick": (1.0, 1.0, 1.0, 0.0)}
MARGINS = {"add": (0.3, -0.1), "pick": (1.0, 2.0, 3.0, -4.0)}
COMPLETE = Evaluation((0.5,), SCORES, 0.1, margins=MARGINS)
FAILED = Evaluation((0.5,), {}, 0.1, "RuntimeError: broken")
PRUNED = Evaluation(
    (0.5,),
    {"add": (1.0,), "pick": (0.0,)},
    0.1,
    margins={"add": (0.3,), "pick": (-2.0,)},
    cost=1 / 3,
    estimate=0.4,
)


def test_the_mean_is_over_tasks():
    assert mean_objective(COMPLETE, TASKS) == 0.625
    assert mean_objective(PRUNED, TASKS) == 0.4
    assert mean_objective(FAILED, TASKS) == -inf


def test_every_task_is_a_column():
    assert task_objectives(COMPLETE, TASKS) == [0.5, 0.75]
    assert task_objectives(FAILED, TASKS) == [-1, -1]  # below 0, the least of these metrics


def test_outcomes_are_the_mean_and_the_margins_of_all_examples():
    assert outcome_objectives(COMPLETE, TASKS) == [0.625, 0.3, -0.1, 1.0, 2.0, 3.0, -4.0]


def test_margins_of_examples_that_were_not_evaluated_are_nan():
    columns = outcome_objectives(PRUNED, TASKS)
    assert [isnan(column) for column in columns] == [False, False, True, False, True, True, True]
    assert columns[:2] == [0.4, 0.3] and columns[3] == -2.0
    score, *margins = outcome_objectives(FAILED, TASKS)
    assert score == -inf and len(margins) == 6 and all(isnan(margin) for margin in margins)
