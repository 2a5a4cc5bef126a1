"""Algorithm 1 of the paper: by hand on three points, and beside a plain transcription of it."""

import pytest
import torch
from evox.core import Problem
from evox.problems.numerical import Sphere
from evox.workflows import EvalMonitor, StdWorkflow
from plain_evogm import plain_algorithm_1

from evox_evogm import EvoGM
from evox_evogm.algorithms.generators import generate


class Recorder(Problem):
    """Calls a function of the population and keeps what was evaluated."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.seen = []

    def evaluate(self, pop):
        self.seen.append(pop.clone())
        return self.function(pop)


def start(problem, pop_size, dim, **settings):
    settings = {"epochs": 3, "hidden_dims": (6,), "clamp": False, **settings}
    bounds = torch.ones(dim, dtype=settings.pop("dtype", torch.float32))
    return StdWorkflow(EvoGM(pop_size, -bounds, bounds, **settings), problem, EvalMonitor())


def distance(pop):
    """Smallest at (0.1, 0.8): of (1, 0), (0, 1), (.5, .5) the second is the best and the first the
    worst.
    """
    return (pop - pop.new_tensor([0.1, 0.8])).norm(dim=1)


def test_the_first_step_evaluates_one_hots_average_and_uniform_points():
    problem = Recorder(distance)
    start(problem, 6, 2).init_step()
    (pop,) = problem.seen
    assert pop[:3].tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    assert pop[3:].shape == (3, 2) and (pop[3:].abs() <= 1).all() and len(pop.unique(dim=0)) == 6


def test_a_population_of_at_most_n_has_the_average_and_the_first_one_hots():
    problem = Recorder(lambda pop: pop.norm(dim=1))
    start(problem, 3, 4).init_step()
    assert problem.seen[0].tolist() == [[0.25] * 4, [1.0, 0, 0, 0], [0, 1.0, 0, 0]]


def test_three_points_go_through_a_round_and_into_the_next():
    problem = Recorder(distance)
    workflow = start(problem, 3, 2, n_iters=1)
    algorithm = workflow.algorithm

    workflow.init_step()  # the points (1, 0), (0, 1), (.5, .5), sorted by fitness
    assert algorithm.points[:3].tolist() == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    first_population = algorithm.points[:3].clone()

    workflow.step()  # the generator, trained with one winner and two losers, moves all three
    offspring = generate(algorithm.generators[0], algorithm.sizes, first_population)
    assert torch.equal(problem.seen[1], offspring)
    together = torch.cat([*problem.seen])
    order = distance(together).argsort()
    assert torch.equal(algorithm.points[:6], together[order])

    # The best two are the axes of round 2. Their scores are known, so three others are evaluated.
    workflow.step()
    basis = together[order][:2]
    assert torch.equal(algorithm.basis, basis)
    torch.testing.assert_close(problem.seen[2][0], basis.mean(0))
    for row in basis:
        assert not (problem.seen[2] == row).all(1).any()
    assert algorithm.count == 2 + 3
    inside = torch.linalg.solve(
        basis.T, problem.seen[2][1:].T
    )  # the uniform points in the coordinates of the new axes
    assert inside.abs().max() <= 1
    known = {
        tuple(point.tolist()): float(f)
        for point, f in zip(algorithm.points[:5], algorithm.fitness[:5], strict=True)
    }
    assert known[1.0, 0.0] == distance(basis)[0] and known[0.0, 1.0] == distance(basis)[1]

    workflow.step()
    rounds = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert [
        tuple(map(int, algorithm.round_and_iteration(torch.tensor(s)))) for s in range(5)
    ] == rounds
    record = algorithm.record_step()
    assert (int(record["round"]), int(record["iteration"])) == (1, 1)
    # Effective points leave as products with the basis, never as coordinates of the round.
    torch.testing.assert_close(record["pop"], algorithm.points[:3] @ basis)
    torch.testing.assert_close(distance(record["pop"]), record["fit"])


@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("n_rounds", [1, 3])
def test_whole_runs_equal_the_plain_transcription(dual, n_rounds):
    settings = {
        "n_rounds": n_rounds,
        "n_iters": 2,
        "epochs": 20,
        "hidden_dims": (8, 5),
        "lr": 1e-2,
        "dual": dual,
    }
    function = lambda pop: ((pop - 0.4) ** 2).sum(1) + torch.sin(5 * pop).sum(1)  # noqa: E731
    torch.manual_seed(3)
    expected, scores = plain_algorithm_1(function, 7, 3, steps=9, **settings)
    problem = Recorder(function)
    torch.manual_seed(3)
    workflow = start(problem, 7, 3, dtype=torch.float64, **settings)
    workflow.init_step()
    for _ in range(8):
        workflow.step()
    for seen, points in zip(problem.seen, expected, strict=True):
        torch.testing.assert_close(seen, points, rtol=1e-7, atol=1e-9)
    best = torch.cat(scores).min()
    torch.testing.assert_close(workflow.monitor.get_best_fitness(), best, rtol=1e-7, atol=1e-9)


def test_points_scale_to_the_box_and_clamp_keeps_them_inside():
    problem = Recorder(lambda pop: pop.sum(1))
    lb, ub = torch.tensor([0.0, -4.0]), torch.tensor([1.0, 4.0])
    workflow = StdWorkflow(EvoGM(5, lb, ub, n_iters=1, epochs=2, hidden_dims=(6,)), problem)
    workflow.init_step()
    assert problem.seen[0][:3].tolist() == [[1.0, 0.0], [0.5, 4.0], [0.75, 2.0]]
    for _ in range(4):
        workflow.step()
    for pop in problem.seen:
        assert (pop >= lb).all() and (pop <= ub).all()
    algorithm = workflow.algorithm
    assert (algorithm.basis.abs() <= 1).all()


def test_without_clamp_effective_points_may_leave_the_box():
    problem = Recorder(
        lambda pop: -pop.abs().sum(1)
    )  # drives the axes of the second round to the corners
    torch.manual_seed(0)
    workflow = start(problem, 8, 2, n_iters=1)
    for step in range(3):
        workflow.init_step() if step == 0 else workflow.step()
    assert problem.seen[2].abs().max() > 1


def test_the_best_points_are_known_again_after_the_shift_and_nothing_is_evaluated_twice():
    problem = Recorder(distance)
    workflow = start(problem, 6, 2, n_rounds=3, n_iters=2)
    workflow.init_step()
    for _ in range(8):
        workflow.step()
    pop = torch.cat(problem.seen)
    assert len(pop) == 54 and len(pop.unique(dim=0)) == 54


def test_failed_evaluations_count_as_worst_and_never_lead():
    def sometimes_failing(pop):
        fitness = distance(pop)
        fitness[0], fitness[1] = float("nan"), float("-inf")
        return fitness

    problem = Recorder(sometimes_failing)
    workflow = start(problem, 5, 2, n_iters=1)
    for step in range(4):
        workflow.init_step() if step == 0 else workflow.step()
        record = workflow.algorithm.record_step()
        assert torch.isfinite(record["fit"]).all() and torch.isfinite(record["pop"]).all()
    assert workflow.algorithm.fitness[0] < 10


def test_more_steps_than_planned_stay_in_the_last_round_and_keep_the_best():
    problem = Recorder(distance)
    workflow = start(problem, 4, 2, n_iters=1, n_rounds=1)
    workflow.init_step()
    for _ in range(6):
        workflow.step()
    record = workflow.algorithm.record_step()
    assert (int(record["round"]), int(record["iteration"])) == (0, 6)
    assert workflow.algorithm.count == 2 + 4 * 2  # the capacity
    assert record["fit"][0] == distance(torch.cat(problem.seen)).min()


def test_a_round_of_fewer_points_than_axes_keeps_the_axes_it_cannot_replace():
    problem = Recorder(lambda pop: ((pop - 0.1) ** 2).sum(1))
    workflow = start(problem, 2, 9, n_iters=1)
    for step in range(3):
        workflow.init_step() if step == 0 else workflow.step()
    seen = torch.cat(problem.seen[:2])
    order = problem.function(seen).argsort()
    torch.testing.assert_close(workflow.algorithm.basis[:4], seen[order])
    assert torch.equal(workflow.algorithm.basis[4:], torch.eye(9)[4:])
    assert workflow.algorithm.count == 4 + 2


def test_the_ablations_change_what_is_trained():
    def one_step(**settings):
        torch.manual_seed(0)
        workflow = start(Recorder(distance), 6, 2, epochs=30, lr=1e-2, **settings)
        workflow.init_step()
        before = workflow.algorithm.generators.clone()
        workflow.step()
        changed = (workflow.algorithm.generators - before).abs().amax(1) > 0
        return changed.tolist(), float(workflow.algorithm.losses[0])

    full, cycle_loss = one_step()
    assert full == [True, True]
    assert one_step(dual=False) == ([True], 0.0)
    without_cycle, free_cycle_loss = one_step(cycle_weight=0.0)
    assert without_cycle == [True, False] and free_cycle_loss > cycle_loss


def test_two_rounds_come_closer_to_the_optimum_of_sphere_than_the_first_points():
    torch.manual_seed(0)
    monitor = EvalMonitor()
    workflow = StdWorkflow(
        EvoGM(20, torch.full((10,), -5.0), torch.full((10,), 5.0)),
        Sphere(),
        monitor,
    )
    workflow.init_step()
    first = float(monitor.get_best_fitness())
    for _ in range(7):
        workflow.step()
    assert len(monitor.fitness_history) == 8 and float(monitor.get_best_fitness()) < first / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pop_size": 1}, "pop_size: expected a whole number of at least 2, found 1"),
        ({"n_rounds": 0}, "n_rounds: .* at least 1, found 0"),
        ({"n_iters": 1.5}, "n_iters: .* found 1.5"),
        ({"epochs": 0}, "epochs: "),
        ({"lr": -1.0}, "lr: expected a number of at least 0, found -1.0"),
        ({"winner_ratio": 0.0}, r"winner_ratio: expected a number in \(0, 1\], found 0.0"),
        ({"winner_ratio": float("nan")}, "winner_ratio"),
        ({"lb": torch.zeros(2), "ub": torch.zeros(2)}, "lb < ub"),
        ({"lb": torch.zeros(3)}, r"found \(3,\) torch.float32 and \(2,\) torch.float32"),
        ({"lb": torch.zeros(2, dtype=torch.int64)}, "floating-point"),
        ({"ub": [1.0, 1.0]}, r"ub: expected a tensor, found \[1.0, 1.0\]"),
        ({"hidden_dims": 8}, "hidden_dims: expected a sequence of widths, found 8"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        EvoGM(**{"pop_size": 4, "lb": -torch.ones(2), "ub": torch.ones(2), **change})


class Shaped(torch.nn.Module):
    """A fitness transform that gives fitness another shape."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, fitness):
        return self.change(fitness)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda fitness: fitness[:3], r"\(3,\)"),
        (lambda fitness: fitness[:, None], r"\(5, 1\)"),
        (lambda fitness: fitness.sum(), r"\(\)"),
    ],
)
def test_fitness_of_another_shape_is_refused(change, found):
    bounds = torch.ones(2)
    workflow = StdWorkflow(EvoGM(5, -bounds, bounds), Sphere(), fitness_transform=Shaped(change))
    with pytest.raises(
        ValueError,
        match=rf"evaluate: expected fitness \(5,\), a number per point .*, found {found}",
    ):
        workflow.init_step()
