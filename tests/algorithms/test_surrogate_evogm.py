"""The surrogate-driven search: what it evaluates, and what it recommends in the end."""

import pickle

import pytest
import torch
from evox.core import Problem
from evox.problems.numerical import Ackley, Sphere
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import EvoGM, Outcomes, SurrogateEvoGM, SurrogateSettings
from evox_evogm.algorithms.surrogate import Surrogate

NO_OUTCOMES = torch.zeros(0), torch.zeros(0, dtype=torch.bool)


class Thresholds(Problem):
    """The share of forty quadratic margins that are above 0, and the margins: a stepped score."""

    def __init__(self, n=6):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.centers = 0.3 + 0.25 * torch.randn(40, n, generator=generator)
        self.outcomes = Outcomes(torch.full((40,), 1 / 40), torch.ones(40, dtype=torch.bool))

    def evaluate(self, pop):
        margins = 0.25 - torch.cdist(pop, self.centers).square()
        return torch.cat([(margins > 0).float().mean(1, keepdim=True), margins], 1)


class ScoreOnly(Thresholds):
    def evaluate(self, pop):
        return super().evaluate(pop)[:, 0]


class Pruning(Thresholds):
    """Evaluates only the first point of a population for all its outcomes."""

    def evaluate(self, pop):
        fitness = super().evaluate(pop)
        fitness[1:, 5:] = torch.nan
        return fitness


def search(problem, steps, cls=SurrogateEvoGM, pop_size=8, dim=6, **settings):
    """The algorithm after `init_step` and some steps."""
    algorithm = cls(pop_size, -torch.ones(dim), torch.ones(dim), **settings)
    workflow = StdWorkflow(algorithm, problem, opt_direction="max")
    workflow.init_step()
    for _ in range(steps):
        workflow.step()
    return workflow.algorithm


def surrogate_of(algorithm):
    """The surrogate on an algorithm's history, and the points of that history."""
    count = int(algorithm.count)
    points = algorithm.points[:count].double()
    fitness = torch.cat([algorithm.fitness[:, None], algorithm.outcomes], 1)[:count].double()
    meaning = algorithm.outcome_weights, algorithm.outcome_by_sign, algorithm.outcome_groups
    return Surrogate(points, fitness, *meaning), points


def mean_best_score(problem, **settings):
    """The best score of 56 evaluations, the mean of three seeds."""
    total = 0.0
    for seed in range(3):
        torch.manual_seed(seed)
        total -= float(search(problem, 6, **settings).fitness[0])
    return total / 3


@pytest.mark.lengthy
def test_with_outcomes_it_needs_fewer_evaluations():
    problem = Thresholds()
    with_outcomes = mean_best_score(problem, outcomes=problem.outcomes)
    scores_alone = mean_best_score(ScoreOnly())
    paper = mean_best_score(ScoreOnly(), cls=EvoGM, clamp=False)
    assert with_outcomes > scores_alone > paper


def test_with_outcomes_the_recommendation_is_predicted_better_than_every_evaluated_point():
    torch.manual_seed(0)
    problem = Thresholds()
    algorithm = search(problem, 1, outcomes=problem.outcomes)
    surrogate, points = surrogate_of(algorithm)
    found = algorithm.recommend()
    predicted = surrogate.predict_around(found[None].double())
    assert float(predicted) < float(surrogate.predict_around(points).min())
    assert bool((found.abs() <= 1).all()) and torch.equal(found, algorithm.recommend())


def test_the_prediction_around_a_point_is_the_mean_of_many_perturbed_copies():
    torch.manual_seed(0)
    problem = Thresholds()
    surrogate, points = surrogate_of(search(problem, 1, outcomes=problem.outcomes))
    generator = torch.Generator().manual_seed(9)
    steps = 0.05 * torch.randn(20_000, 6, dtype=torch.float64, generator=generator)
    noise_std = 2 * surrogate.noise_std
    means = [surrogate.predict(point + steps, noise_std).mean() for point in points[:4]]
    many = torch.stack(means)
    few, plain = surrogate.predict_around(points[:4]), surrogate.predict(points[:4], noise_std)
    assert ((few - many).abs() < (plain - many).abs() / 2).all()


class Smooth(Problem):
    """Three quadratic outcomes that count as they are; far from the optimum they are broken."""

    def __init__(self):
        super().__init__()
        self.outcomes = Outcomes(torch.full((3,), 1 / 3), torch.zeros(3, dtype=torch.bool))
        self.seen = []

    def evaluate(self, pop):
        self.seen.append(pop.clone())
        squares = (pop[:, :3] - torch.tensor([0.3, -0.2, 0.5])).square()
        margins = torch.where(pop[:, :1] > 0.8, -1e6, -squares)
        return torch.cat([margins.mean(1, keepdim=True), margins], 1)


def test_the_original_of_a_workflows_algorithm_recommends_the_same():
    problem = Thresholds()
    torch.manual_seed(0)
    algorithm = SurrogateEvoGM(8, -torch.ones(6), torch.ones(6), outcomes=problem.outcomes)
    workflow = StdWorkflow(algorithm, problem, opt_direction="max")
    workflow.init_step()
    workflow.step()
    assert torch.equal(algorithm.recommend(), workflow.algorithm.recommend())


def test_without_another_evaluation_an_evaluated_point_is_recommended():
    problem = Smooth()
    torch.manual_seed(0)
    algorithm = search(problem, 2, pop_size=3, dim=3, outcomes=problem.outcomes)
    evaluations = len(problem.seen)
    point = algorithm.recommend(evaluate=False)
    assert len(problem.seen) == evaluations
    assert (algorithm.points == point).all(1).any()


def test_without_a_workflow_an_evaluated_point_is_recommended():
    problem = Thresholds()
    torch.manual_seed(0)
    searched = search(problem, 1, outcomes=problem.outcomes)
    alone = SurrogateEvoGM(8, -torch.ones(6), torch.ones(6), outcomes=problem.outcomes)
    alone.load_state_dict(searched.state_dict())
    assert (alone.points == alone.recommend()).all(1).any()


@pytest.mark.parametrize("seed", range(4))
def test_the_recommended_point_is_evaluated_and_never_worse_than_the_best_that_was(seed):
    problem = Smooth()
    torch.manual_seed(seed)
    algorithm = search(problem, 6, pop_size=3, dim=3, outcomes=problem.outcomes)
    evaluations = sum(map(len, problem.seen))
    point = algorithm.recommend()
    assert sum(map(len, problem.seen)) == evaluations + 1
    score = float(problem.evaluate(point[None])[0, 0])
    assert score >= -float(algorithm.fitness[0]) - 1e-6
    assert score > -0.05


def test_where_points_were_pruned_the_recommendation_has_been_evaluated_in_full():
    torch.manual_seed(0)
    problem = Pruning()
    algorithm = search(problem, 1, outcomes=problem.outcomes)
    count = int(algorithm.count)
    complete = algorithm.points[:count][algorithm.outcomes[:count].isfinite().all(1)]
    assert len(complete) == 2 and (complete == algorithm.recommend()).all(1).any()


def test_where_the_worst_points_were_dropped_the_recommendation_has_been_evaluated():
    problem = Thresholds()
    settings = SurrogateSettings(max_points=20)
    evaluated = []
    for steps in (0, 1, 2):  # 8, 16, 24 evaluations
        torch.manual_seed(0)
        algorithm = search(problem, steps, outcomes=problem.outcomes, settings=settings)
        evaluated.append(bool((algorithm.points == algorithm.recommend()).all(1).any()))
    assert evaluated == [False, False, True]


def test_without_outcomes_the_recommendation_is_the_evaluated_point_with_the_best_prediction():
    torch.manual_seed(0)
    algorithm = search(ScoreOnly(), 1)
    surrogate, points = surrogate_of(algorithm)
    best = algorithm.points[int(surrogate.predict(points).argmin())]
    assert torch.equal(algorithm.recommend(), best)


def test_a_recommendation_before_the_first_step_is_refused():
    with pytest.raises(ValueError, match="recommend: expected evaluated points, found none"):
        SurrogateEvoGM(3, -torch.ones(2), torch.ones(2)).recommend()


def test_fitness_without_the_outcomes_that_were_announced_is_refused():
    message = r"evaluate: expected fitness \(8, 41\), a row per point, found \(8,\)"
    with pytest.raises(ValueError, match=message):
        search(ScoreOnly(), 0, outcomes=Thresholds().outcomes)


@pytest.mark.parametrize(
    ("weights", "by_sign", "message"),
    [
        (torch.ones(3), torch.ones(2).bool(), r"expected weights \(S,\) and by_sign .*, found \(3"),
        (-torch.ones(2), torch.ones(2).bool(), "expected weights of at least 0, found -1.0"),
        (3, torch.ones(2).bool(), "expected two tensors, weights and by_sign, found <class 'int'>"),
    ],
)
def test_outcomes_that_mean_nothing_are_refused(weights, by_sign, message):
    with pytest.raises(ValueError, match=message):
        SurrogateEvoGM(4, -torch.ones(2), torch.ones(2), outcomes=(weights, by_sign))


@pytest.mark.parametrize(("dim", "pop_size"), [(300, 4), (3, 300)])
def test_more_dimensions_or_points_in_a_step_than_rows(dim, pop_size):
    torch.manual_seed(0)
    algorithm = search(Sphere(), 1, dim=dim, pop_size=pop_size)
    assert algorithm.record_step()["pop"].shape == (pop_size, dim)
    assert int(algorithm.count) >= pop_size


def test_more_evaluations_than_rows_drop_the_worst():
    torch.manual_seed(0)
    algorithm = search(Ackley(), 4, dim=3, settings=SurrogateSettings(max_points=20))
    assert int(algorithm.count) == 20 and bool((algorithm.fitness.diff() >= 0).all())


def test_initial_points_are_evaluated_first_some_in_every_step():
    given = torch.tensor([[0.5, -1.0], [2.0, 3.0], [0.0, 0.0], [1.0, 1.0], [-2.0, 0.25]])
    bounds = torch.tensor([2.0, 4.0])
    torch.manual_seed(0)
    algorithm = SurrogateEvoGM(3, -bounds, bounds, initial_points=given)
    monitor = EvalMonitor(full_sol_history=True)
    workflow = StdWorkflow(algorithm, Sphere(), monitor)
    workflow.init_step()
    workflow.step()
    workflow.step()
    evaluated = torch.cat(monitor.get_solution_history())
    assert torch.equal(evaluated[:5], given)
    assert not (evaluated[5:][:, None] == given).all(2).any()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(2, 3), r"initial_points: expected a tensor \(K, 2\), found \(2, 3\)"),
        (torch.tensor([[0.0, 0.0], [0.0, 1.5]]), r"inside the box, found \[0.0, 1.5\]"),
    ],
)
def test_initial_points_that_do_not_fit_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        SurrogateEvoGM(3, -torch.ones(2), torch.ones(2), initial_points=points)


def test_an_algorithm_that_was_pickled_finds_its_settings_again():
    settings = SurrogateSettings(beta=0.321)
    algorithm = SurrogateEvoGM(3, -torch.ones(2), torch.ones(2), settings=settings)
    again = pickle.loads(pickle.dumps(algorithm))
    assert again.settings == settings
    assert again._settings_number == algorithm._settings_number


class BestOutside(Problem):
    """A quadratic score whose optimum is outside the box, on two of three sides."""

    OPTIMUM = torch.tensor([1.4, 0.0, -1.8])

    def evaluate(self, pop):
        return -(pop - self.OPTIMUM).square().sum(1)


def test_the_box_opens_where_the_best_point_stands_at_its_edge():
    torch.manual_seed(0)
    algorithm = search(BestOutside(), 25, pop_size=3, dim=3, box_growth=0.5)
    lowest, highest = algorithm.box.tolist()
    assert lowest[:2] == [-1, -1] and lowest[2] <= -2
    assert highest[1:] == [1, 1] and highest[0] >= 1.5
    best = algorithm.recommend(evaluate=False)
    torch.testing.assert_close(best, BestOutside.OPTIMUM, atol=0.1, rtol=0)


def test_without_growth_the_box_is_kept():
    torch.manual_seed(0)
    algorithm = search(BestOutside(), 25, pop_size=3, dim=3)
    assert torch.equal(algorithm.box, torch.tensor([[-1.0] * 3, [1.0] * 3]))
    expected = torch.tensor([1.0, 0.0, -1.0])
    torch.testing.assert_close(algorithm.recommend(evaluate=False), expected, atol=0.1, rtol=0)


def test_a_box_grows_to_three_times_its_size():
    torch.manual_seed(0)
    problem = Sphere()  # minimised: far from the box of 9 to 11
    lb, ub = torch.full((2,), 9.0), torch.full((2,), 11.0)
    algorithm = SurrogateEvoGM(3, lb, ub, box_growth=2.0)
    workflow = StdWorkflow(algorithm, problem)
    workflow.init_step()
    for _ in range(12):
        workflow.step()
    expected = torch.tensor([[7.0, 7.0], [11.0, 11.0]])  # 3 half widths from the center
    torch.testing.assert_close(workflow.algorithm.box, expected)


def coarse(points):
    """Whether both coordinates of each of three blocks are equal, by point."""
    pairs = points.view(-1, 3, 2)
    return (pairs[..., 0] == pairs[..., 1]).all(1)


def evaluated_in_order(steps, **settings):
    """The points of a search over three blocks of two coordinates, in order, and the algorithm."""
    problem, points = Thresholds(), []
    evaluate = problem.evaluate

    def keep(pop):
        points.append(pop)
        return evaluate(pop)

    problem.evaluate = keep
    algorithm = search(problem, steps, pop_size=4, outcomes=problem.outcomes, blocks=3, **settings)
    return torch.cat(points), algorithm


def test_the_first_points_have_one_value_a_block():
    torch.manual_seed(0)
    points, _ = evaluated_in_order(5, settings=SurrogateSettings(coarse_points_per_block=3))
    assert coarse(points).tolist() == [True] * 12 + [False] * 12  # 9 fill three populations of 4
    assert torch.allclose(points[0], torch.full((6,), 1 / 3))  # the average of three
    assert len(points.unique(dim=0)) == 24


def test_as_long_as_all_points_have_one_value_a_block_so_has_the_recommended_one():
    torch.manual_seed(0)
    few, algorithm = evaluated_in_order(2)
    assert coarse(few).all() and coarse(algorithm.recommend()).all()
    more, algorithm = evaluated_in_order(4, settings=SurrogateSettings(coarse_points_per_block=2))
    assert not coarse(more).all() and not coarse(algorithm.recommend()).all()


def test_a_search_does_not_end_before_its_points_have_had_a_value_a_coordinate():
    torch.manual_seed(0)
    points, algorithm = evaluated_in_order(5)  # 24 points, of which 12 have one value a block
    problem = Thresholds()
    fitness = -problem.evaluate(points)
    assert algorithm.recent_gain(points, fitness, 13) == torch.inf
    assert abs(algorithm.recent_gain(points, fitness, 12)) < 1


def test_initial_points_with_more_than_one_value_a_block_end_the_coarse_search():
    torch.manual_seed(0)
    given = torch.linspace(-0.5, 0.5, 6)[None]
    points, _ = evaluated_in_order(2, initial_points=given)
    assert torch.equal(points[0], given[0])
    assert not coarse(points[4:]).any()


def test_blocks_that_do_not_divide_the_coordinates_are_refused():
    with pytest.raises(ValueError, match="^blocks: expected a divisor of 6 coordinates, found 4$"):
        SurrogateEvoGM(4, -torch.ones(6), torch.ones(6), blocks=4)
