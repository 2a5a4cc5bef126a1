"""The merges that are scored again: by expected score, those that keep the constraints first."""

import math
from types import SimpleNamespace

import pytest
import torch

from evox_evogm import GradientSearch, Outcomes, SurrogateEvoGM
from evox_evogm.command.best_candidates import best_candidates, smoothed_fitness_of
from evox_evogm.problems.scalarization import Constraint, Objective


def problem_of(objective=None, objectives="scores"):
    """A problem whose merges are the same where their coefficients are, up to one decimal."""

    def first_of_each(pop):
        rows = {}
        for row, point in enumerate(pop.tolist()):
            rows.setdefault(tuple(round(value, 1) for value in point), row)
        return list(rows.values())

    return SimpleNamespace(
        objective=objective or Objective(),
        objectives=objectives,
        cached_fitness=lambda points: points[:, 0],  # the first coefficient is the score
        cache=SimpleNamespace(first_of_each=first_of_each),
    )


def record(first, second, tasks=None, **more):
    tasks = {"t": first} if tasks is None else tasks
    return {"coefficients": [first, second], "score": first, "tasks": tasks, **more}


RECOMMENDED = torch.tensor([0.5, 0.5])


def candidates(problem, records, count=9):
    found = best_candidates(None, problem, records, RECOMMENDED, count)
    return [[round(value, 2) for value in point] for point in found.tolist()]


def test_the_recommended_one_is_first_and_then_the_best():
    records = [record(0.2, 0.0), record(0.9, 0.0), record(0.4, 0.0)]
    in_order = [[0.5, 0.5], [0.9, 0.0], [0.4, 0.0], [0.2, 0.0]]
    assert candidates(problem_of(), records) == in_order
    assert candidates(problem_of(), records, count=2) == in_order[:2]


def test_what_failed_or_was_estimated_or_has_the_same_weights_takes_no_part():
    failed = {**record(0.9, 0.0), "score": None}
    estimated = record(0.8, 0.0, estimate=True)
    records = [failed, estimated, record(0.51, 0.49), record(0.3, 0.0)]
    assert candidates(problem_of(), records) == [[0.5, 0.5], [0.3, 0.0]]


def test_a_merge_that_breaks_a_constraint_comes_after_those_that_keep_it():
    objective = Objective(constraints=(Constraint("u", least=0.5),))
    records = [record(0.9, 0.0, {"u": 0.4}), record(0.2, 0.0, {"u": 0.5})]
    expected = [[0.5, 0.5], [0.2, 0.0], [0.9, 0.0]]
    assert candidates(problem_of(objective), records) == expected


def test_for_several_objectives_only_the_front_takes_part_best_mean_first():
    tasks = [{"t": 1.0, "u": 0.0}, {"t": 0.9, "u": 0.9}, {"t": 0.0, "u": 0.8}]  # the last is beaten
    records = []
    for place, scores in enumerate(tasks):
        score = sum(scores.values()) / 2
        records.append({"coefficients": [float(place), 0.0], "score": score, "tasks": scores})
    expected = [[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]
    assert candidates(problem_of(objectives="tasks"), records) == expected


POINTS = torch.tensor([[0.0, 0.0], [0.5, 0.0]])
BOX = torch.ones(2)
BY_SIGN = Outcomes(torch.tensor([0.25, 0.75]), torch.tensor([True, False]))


def test_of_gradient_search_an_outcome_by_sign_counts_by_its_logistic_curve():
    algorithm = GradientSearch(torch.zeros(2), outcomes=BY_SIGN)
    fitness = torch.tensor([[0.0, 0.0, -2.0, 0.0, 0.0], [9.0, math.log(3), 1.0, 0.0, 0.0]])
    # 1 / (1 + e^0) = 1/2 and 1 / (1 + 1/3) = 3/4.
    expected = [0.25 * 0.5 - 0.75 * 2, 0.25 * 0.75 + 0.75]
    assert smoothed_fitness_of(algorithm, POINTS, fitness).tolist() == pytest.approx(expected)


def test_of_other_algorithms_it_is_the_first_column():
    fitness = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    assert smoothed_fitness_of(None, POINTS, fitness).tolist() == [3.0, 2.0]
    assert smoothed_fitness_of(None, POINTS, fitness[:, 0]).tolist() == [3.0, 2.0]


def test_of_surrogate_evogm_it_is_drawn_to_the_neighbours():
    """A lucky score among bad neighbours is not expected to be the best, though it was."""
    algorithm = SurrogateEvoGM(3, -BOX, BOX, outcomes=BY_SIGN)
    good, bad = torch.tensor([-0.9, 0.0]), torch.tensor([0.9, 0.0])
    torch.manual_seed(0)
    around = torch.randn(8, 2) * 0.02
    points = torch.cat([good + around, bad + around])
    margins = torch.cat([torch.full((8,), -1.0), torch.full((8,), 1.0)])
    margins[8] = -1.05  # the lucky one, minimised
    fitness = torch.stack([margins, margins, margins], 1)
    expected = smoothed_fitness_of(algorithm, points, fitness)
    assert fitness[:, 0].argmin() == 8 and expected.argmin() < 8
    assert float(expected[8]) > float(expected[:8].max())
