"""The points that are known before a search, and algorithms that start from them."""

import pytest
import torch
from bowls import Bowl, box, evaluated_points
from evox.algorithms import CSO, DE, PSO
from evox.core import Algorithm
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM
from evox_evogm.baselines import (
    ModelSwarms,
    PSOMerging,
    RandomSearch,
    initial_population,
    known_points,
    start_from,
)


def test_known_points_are_base_experts_and_average():
    assert known_points(2).tolist() == [[0, 0], [1, 0], [0, 1], [0.5, 0.5]]
    assert known_points(3, torch.float64).dtype == torch.float64


def test_known_points_of_no_experts_are_refused():
    with pytest.raises(ValueError, match="n: expected a whole number of at least 1, found 0"):
        known_points(0)


@pytest.mark.parametrize("pop_size", [1, 2, 3, 4, 5, 9])
def test_the_initial_population_is_that_of_evogm_and_the_base(pop_size):
    ours = initial_population(pop_size, *box(3))
    evogm = EvoGM(max(2, pop_size), *box(3))
    (theirs,) = evaluated_points(evogm, steps=0)
    assert ours.shape == (pop_size, 3)
    assert torch.equal(ours[:4], theirs[:pop_size][:4])
    if pop_size >= 5:
        assert ours[4].tolist() == [0, 0, 0]


def test_uniform_points_of_the_initial_population_fill_the_box():
    lb = torch.tensor([2.0, -7.0])
    ub = torch.tensor([3.0, -5.0])
    points = initial_population(500, lb, ub)[4:]
    assert (points >= lb).all()
    assert (points <= ub).all()
    torch.testing.assert_close(points.mean(0), (lb + ub) / 2, atol=0.1, rtol=0)


@pytest.mark.parametrize("make", [PSO, CSO, DE, RandomSearch, ModelSwarms, PSOMerging])
def test_an_algorithm_starts_from_given_points(make):
    points = initial_population(5, *box(3))
    kept = points.clone()
    algorithm = make(8, *box(3))
    drawn = algorithm.pop.clone()
    assert start_from(algorithm, points) is algorithm
    workflow = StdWorkflow(algorithm, Bowl(), EvalMonitor(full_sol_history=True))
    workflow.init_step()
    (evaluated,) = workflow.monitor.get_solution_history()
    assert torch.equal(evaluated, torch.cat([points, drawn[5:]]))
    workflow.step()  # CSO's writes into its population
    assert torch.equal(points, kept)


def test_personal_and_global_bests_follow_the_given_points():
    algorithm = start_from(PSO(4, *box(2)), known_points(2))
    assert torch.equal(algorithm.local_best_location, known_points(2))
    assert torch.equal(algorithm.global_best_location, torch.zeros(2))
    algorithm.pop[0] = 9.0
    assert torch.equal(algorithm.local_best_location, known_points(2))


def test_an_algorithm_without_a_population_is_refused():
    message = r"algorithm: expected a population `pop` \(P, n\), found none in Algorithm"
    with pytest.raises(ValueError, match=message):
        start_from(Algorithm(), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(2, 2), r"points: expected a tensor \(K, 3\), found \(2, 2\)"),
        ([[0.0] * 3], r"points: expected a tensor \(K, 3\), found \[\[0"),
        (torch.zeros(5, 3), "points: expected 1 to 4 rows, found 5"),
        (torch.zeros(0, 3), "points: expected 1 to 4 rows, found 0"),
    ],
)
def test_points_that_do_not_fit_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        start_from(RandomSearch(4, *box(3)), points)


@pytest.mark.parametrize("make", [ModelSwarms, PSOMerging])
def test_a_swarm_may_start_at_that_population(make):
    torch.manual_seed(2)
    swarm = make(9, *box(4), start="known").pop
    torch.manual_seed(2)
    assert torch.equal(swarm, initial_population(9, *box(4)))
