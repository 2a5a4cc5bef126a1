"""What the surrogate makes of outcomes, and what it proposes."""

import pytest
import torch
from compare_methods import normal_scores
from evox.core import Problem
from evox.problems.numerical import Ackley, Sphere
from evox.workflows import StdWorkflow

from evox_evogm import EvoGM, Outcomes, surrogate
from evox_evogm.algorithms.gaussian_process import GaussianProcess
from evox_evogm.algorithms.surrogate import (
    Surrogate,
    answer,
    expected_fitness,
    on_cpu,
    propose,
    winsorize,
    without_known,
)

NO_OUTCOMES = torch.zeros(0), torch.zeros(0, dtype=torch.bool)


def test_expected_fitness_is_the_mean_over_draws_of_the_outcomes(data):
    points, outcomes = data
    weights, by_sign = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([False, True, True])
    process = GaussianProcess(points, outcomes)
    candidates = torch.tensor([[0.1, 0.2, -0.3], [0.9, -0.9, 0.0]], dtype=torch.float64)
    found = process.posterior(candidates)
    expected, _ = expected_fitness(process, found, weights, by_sign)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200_000, 2, 3, generator=generator, dtype=torch.float64)
    draws = found.means + noise * (found.variance + process.noise).sqrt() * process.scale
    fitness = (torch.where(by_sign, (draws > 0).double(), draws) @ weights).mean(0)
    assert torch.allclose(expected, fitness, atol=5e-3)


def test_a_score_deviates_by_all_of_its_deviation_and_a_sum_of_outcomes_by_a_share(data):
    """A score alone was once taken for a sum, and .3 of its deviation for all of it: searches explored too little."""
    points, outcomes = data
    for count, share in ((1, 1.0), (3, 0.3)):
        process = GaussianProcess(points, outcomes[:, :count])
        found = process.posterior(
            torch.tensor([[0.1, 0.2, -0.3], [0.9, -0.9, 0.0]], dtype=torch.float64)
        )
        _, deviation = expected_fitness(
            process, found, torch.ones(count).double(), torch.zeros(count, dtype=torch.bool)
        )
        assert torch.allclose(deviation, share * found.variance[:, 0].sqrt() * process.scale.sum())


def test_the_outcomes_of_a_merge_that_failed_are_the_worst_of_the_others():
    points = torch.eye(4, dtype=torch.float64)
    fitness = torch.tensor(
        [[1.0, 2.0, -1.0], [0.0, -2.0, -3.0], [1.0, 1.0, 4.0], [9.0, torch.nan, torch.inf]]
    ).double()
    weights, by_sign = torch.tensor([0.5, 0.5]), torch.tensor([False, False])
    surrogate = Surrogate(points, fitness, weights, by_sign)
    assert torch.allclose(
        surrogate.process.center, torch.tensor([(2 - 2 + 1 + 2) / 4, (-1 - 3 + 4 + 4) / 4]).double()
    )


def test_outcomes_that_count_by_their_sign_are_bent_and_what_decides_about_it_is_blurred(data):
    points, outcomes = data
    weights, by_sign = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([True, True, False])
    surrogate = Surrogate(points, torch.cat([outcomes[:, :1], outcomes], 1), weights, by_sign)
    typical = float(outcomes[:, :2].abs().flatten().sort().values[14])  # the lower median of 30
    bent = 2 * typical * torch.tanh(outcomes[:, :2] / (2 * typical))
    process = GaussianProcess(points, torch.cat([bent, outcomes[:, 2:]], 1))
    candidates = torch.tensor([[0.1, 0.2, -0.3], [0.9, -0.9, 0.0]], dtype=torch.float64)
    found = process.posterior(candidates)
    spread = ((found.variance + process.noise) * process.scale**2 + (0.3 * typical) ** 2).sqrt()
    above = torch.special.ndtr(found.means / spread)
    expected = 0.5 * above[:, 0] + 0.3 * above[:, 1] + 0.2 * found.means[:, 2]
    assert torch.allclose(surrogate.expected_fitness(candidates), expected)


def test_a_pick_is_entered_as_if_its_mean_had_been_observed(data):
    """The variance of the others after a pick is that of a process with one more point."""
    points, outcomes = data
    surrogate = Surrogate(points, outcomes[:, :1], *NO_OUTCOMES)
    candidates = (
        2 * torch.rand(40, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1
    )
    seen = []
    expect = surrogate._expect
    surrogate._expect = lambda posterior, *blur: (
        seen.append(posterior.variance.clone()) or expect(posterior, *blur)
    )
    picked = surrogate.pick(candidates, 4, torch.Generator().manual_seed(4)).tolist()
    assert len(set(picked)) == 4
    process = surrogate.process
    for count in (1, 2, 3):
        more = torch.cat([points, candidates[picked[:count]]])
        covariance = process.covariance(more, more) + process.noise * torch.eye(
            len(more), dtype=torch.float64
        )
        cross = process.covariance(candidates, more)
        expected = process.variance - (cross @ torch.linalg.inv(covariance) * cross).sum(1)
        variance = seen[count - 4][:, 0]  # of the shortlist, which has another order
        assert torch.allclose(variance.sort().values, expected.sort().values, atol=1e-8)


def test_every_fifth_pick_is_chosen_by_its_surroundings(data):
    points, outcomes = data
    surrogate = Surrogate(points, outcomes[:, :1], *NO_OUTCOMES)
    candidates = (
        2 * torch.rand(40, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1
    )
    worst = surrogate.expected_fitness(candidates).argsort(descending=True)[:2].tolist()
    merit = {tuple(candidates[worst[0]].tolist()): -2e6, tuple(candidates[worst[1]].tolist()): -1e6}
    surrogate.expected_around = lambda rows: torch.tensor(
        [merit.get(tuple(row), 0.0) for row in rows.tolist()]
    ).double()
    picked = surrogate.pick(candidates, 7, torch.Generator().manual_seed(4)).tolist()
    assert picked[0] == worst[0] and picked[5] == worst[1]


def test_proposals_repeat_with_their_seed_and_lie_in_the_box(data):
    points, outcomes = data
    arguments = (points, outcomes[:, :1], torch.tensor(15), points, *NO_OUTCOMES)
    first, again, other = (propose(*arguments, torch.tensor(seed), 6) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (6, 3) and float(first.abs().max()) <= 1 and len(first.unique(dim=0)) == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_failed_is_known_in_every_dtype(dtype):
    fitness = torch.tensor([[torch.finfo(dtype).max], [2.0]], dtype=dtype)
    assert on_cpu(torch.zeros(2, 3, dtype=dtype), fitness)[1].tolist() == [[torch.inf], [2.0]]


def test_an_outcome_that_is_not_finite_was_not_observed(data):
    points, outcomes = data
    fitness = torch.cat([outcomes[:, :1], outcomes], 1)
    without, infinite = fitness.clone(), fitness.clone()
    without[3, 2], infinite[3, 2] = torch.nan, -torch.inf
    meaning = torch.ones(3), torch.tensor([True, False, True])
    expected = Surrogate(points, without, *meaning).expected_fitness(points)
    assert expected.isfinite().all() and torch.equal(
        expected, Surrogate(points, infinite, *meaning).expected_fitness(points)
    )


def test_known_points_and_equal_ones_are_no_candidates():
    candidates = torch.tensor([[1.0, 1.0], [0.5, 0.25], [1.0, 1.0], [-1.0, 1.0]]).double()
    found = without_known(candidates, torch.tensor([[-1.0, 1.0], [0.0, 0.0]]).double())
    assert found.tolist() == [[0.5, 0.25], [1.0, 1.0]]


def test_proposals_at_a_corner_of_the_box_differ(data):
    """The best of a plane is the corner, to which noise is cut off again and again."""
    points, _ = data
    known = torch.cat([points, torch.ones(1, 3).double()])
    fitness = -known.sum(1, keepdim=True)
    found = propose(known, fitness, torch.tensor(16), points, *NO_OUTCOMES, torch.tensor(0), 6)
    assert len(torch.cat([known, found]).unique(dim=0)) == 22


def test_the_first_of_a_batch_is_better_by_its_own_measure_with_more_pools(data, monkeypatch):
    points, outcomes = data
    monkeypatch.setattr(surrogate, "SCORE_OPTIMISM", 0.0)
    monkeypatch.setattr(
        surrogate, "SHORTLIST", 10_000
    )  # so that more pools are more to choose from
    measure = Surrogate(points, outcomes[:, :1], *NO_OUTCOMES)
    merit = []
    for pools in (1, 2, 4):
        monkeypatch.setattr(surrogate, "POOLS", pools)
        found = propose(
            points, outcomes[:, :1], torch.tensor(15), points, *NO_OUTCOMES, torch.tensor(0), 2
        )
        merit.append(float(measure.expected_fitness(found)[0]))
    assert merit[2] < merit[1] < merit[0]


def test_another_default_device_does_not_matter(data):
    points, outcomes = data
    arguments = (points, outcomes[:, :1], torch.tensor(15), points, *NO_OUTCOMES)
    expected, seed = (
        (propose(*arguments, torch.tensor(5), 6), answer(*arguments[:2], *NO_OUTCOMES)),
        torch.tensor(5),
    )
    with torch.device("meta"):
        found = propose(*arguments, seed, 6), answer(*arguments[:2], *NO_OUTCOMES)
    assert all(map(torch.equal, found, expected))


class Thresholds(Problem):
    """The share of forty quadratic margins that are above 0, and the margins: a score with steps."""

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


def best_score(problem, seed, steps=6, **settings):
    torch.manual_seed(seed)
    algorithm = EvoGM(
        8, -torch.ones(6), torch.ones(6), epochs=5, hidden_dims=(8,), clamp=False, **settings
    )
    workflow = StdWorkflow(algorithm, problem, opt_direction="max")
    workflow.init_step()
    for _ in range(steps):
        workflow.step()
    return -float(workflow.algorithm.fitness[0])


def test_fitness_far_above_the_median_counts_as_twice_its_distance_from_the_best():
    failed = torch.inf
    found = winsorize(torch.tensor([[1.0], [3.0], [4.0], [1e9], [failed], [failed]]).double())
    assert found[:, 0].tolist() == [1, 3, 4, 5, 5, 5]  # median 3 of the four that have a score
    assert winsorize(torch.full((2, 1), failed).double())[:, 0].tolist() == [0, 0]


def test_normal_scores_know_only_the_order_of_fitness():
    scores = normal_scores(torch.tensor([[3.0], [-1.0], [torch.inf], [3.0]]))[:, 0]
    quantiles = torch.special.ndtri(torch.tensor([0.5, 0.125, 0.875, 0.5], dtype=torch.float64))
    assert torch.allclose(scores, quantiles)


def test_with_outcomes_it_needs_fewer_evaluations():
    """56 evaluations, the mean of three seeds."""
    problem = Thresholds()
    with_outcomes = (
        sum(
            best_score(problem, seed, proposal="screened", outcomes=problem.outcomes)
            for seed in range(3)
        )
        / 3
    )
    scores_only = sum(best_score(ScoreOnly(), seed, proposal="screened") for seed in range(3)) / 3
    paper = sum(best_score(ScoreOnly(), seed, proposal="paper") for seed in range(3)) / 3
    assert with_outcomes > scores_only > paper


@pytest.fixture
def searched():
    torch.manual_seed(0)
    problem = Thresholds()
    workflow = StdWorkflow(
        EvoGM(8, -torch.ones(6), torch.ones(6), outcomes=problem.outcomes, epochs=2),
        problem,
        opt_direction="max",
    )
    workflow.init_step()
    workflow.step()
    return workflow.algorithm


def test_with_outcomes_the_answer_is_better_than_every_evaluated_point_as_the_surrogate_sees_it(
    searched,
):
    count = int(searched.count)
    points, fitness = (
        searched.points[:count].double(),
        torch.cat([searched.fitness[:, None], searched.outcomes], 1)[:count].double(),
    )
    surrogate = Surrogate(points, fitness, searched.outcome_weights, searched.outcome_by_sign)
    found = searched.answer()
    assert float(surrogate.expected_around(found[None].double())) < float(
        surrogate.expected_around(points).min()
    )
    assert bool((found.abs() <= 1).all()) and torch.equal(found, searched.answer())


def test_what_is_expected_of_the_surroundings_is_the_mean_of_many_points_there(searched):
    count = int(searched.count)
    points = searched.points[:count].double()
    fitness = torch.cat([searched.fitness[:, None], searched.outcomes], 1)[:count].double()
    surrogate = Surrogate(points, fitness, searched.outcome_weights, searched.outcome_by_sign)
    steps = 0.05 * torch.randn(
        20_000, points.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(9)
    )
    blur = 2 * surrogate.blur
    many = torch.stack(
        [surrogate.expected_fitness(point + steps, blur).mean() for point in points[:4]]
    )
    few, plain = surrogate.expected_around(points[:4]), surrogate.expected_fitness(points[:4], blur)
    assert ((few - many).abs() < (plain - many).abs() / 2).all()


class GivingUp(Thresholds):
    """Asks only the first point of a population for all its outcomes."""

    def evaluate(self, pop):
        fitness = super().evaluate(pop)
        fitness[1:, 5:] = torch.nan
        return fitness


def test_where_points_were_given_up_the_answer_has_been_evaluated_in_full():
    torch.manual_seed(0)
    problem = GivingUp()
    algorithm = EvoGM(8, -torch.ones(6), torch.ones(6), outcomes=problem.outcomes, epochs=2)
    workflow = StdWorkflow(algorithm, problem, opt_direction="max")
    workflow.init_step()
    workflow.step()
    algorithm = workflow.algorithm
    complete = algorithm.points[: int(algorithm.count)][
        algorithm.outcomes[: int(algorithm.count)].isfinite().all(1)
    ]
    assert len(complete) == 2 and (complete == algorithm.answer()).all(1).any()


def test_where_the_worst_points_were_dropped_the_answer_has_been_evaluated(monkeypatch):
    monkeypatch.setattr("evox_evogm.algorithms.evogm.ROWS", 20)
    problem, evaluated = Thresholds(), []
    torch.manual_seed(0)
    algorithm = EvoGM(
        8,
        -torch.ones(6),
        torch.ones(6),
        epochs=2,
        hidden_dims=(8,),
        clamp=False,
        outcomes=problem.outcomes,
    )
    workflow = StdWorkflow(algorithm, problem, opt_direction="max")
    workflow.init_step()
    for _ in range(3):
        evaluated.append(bool((algorithm.points == algorithm.answer()).all(1).any()))
        workflow.step()
    assert evaluated == [False, False, True]  # 8, 16, 24


def test_without_outcomes_the_answer_is_the_evaluated_point_of_which_the_surrogate_expects_most():
    torch.manual_seed(0)
    workflow = StdWorkflow(
        EvoGM(8, -torch.ones(6), torch.ones(6), epochs=2), ScoreOnly(), opt_direction="max"
    )
    workflow.init_step()
    workflow.step()
    algorithm = workflow.algorithm
    points, fitness = (
        algorithm.points[: int(algorithm.count)],
        algorithm.fitness[: int(algorithm.count), None],
    )
    surrogate = Surrogate(points.double(), fitness.double(), *NO_OUTCOMES)
    assert torch.equal(
        algorithm.answer(), points[int(surrogate.expected_fitness(points.double()).argmin())]
    )


def test_the_answer_of_paper_proposals_is_the_best_point():
    torch.manual_seed(0)
    workflow = StdWorkflow(
        EvoGM(6, -torch.ones(3), torch.ones(3), proposal="paper", epochs=2), Sphere()
    )
    workflow.init_step()
    workflow.step()
    assert float(workflow.algorithm.answer().square().sum()) == pytest.approx(
        float(workflow.algorithm.fitness[0])
    )


def test_fitness_without_the_outcomes_that_were_announced_is_refused():
    problem = Thresholds()
    algorithm = EvoGM(
        8, -torch.ones(6), torch.ones(6), proposal="screened", outcomes=problem.outcomes
    )
    with pytest.raises(
        ValueError, match=r"evaluate: expected fitness \(8, 41\), a row per point, found \(8,\)"
    ):
        StdWorkflow(algorithm, ScoreOnly(), opt_direction="max").init_step()


def test_an_unknown_proposal_is_refused():
    with pytest.raises(
        ValueError, match="""proposal: expected "paper" or "screened", found 'quick'"""
    ):
        EvoGM(4, -torch.ones(2), torch.ones(2), proposal="quick")


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        (
            (torch.ones(3), torch.ones(2, dtype=torch.bool)),
            r"expected weights \(S,\) and by_sign \(S,\) of bool, found \(3",
        ),
        (
            (-torch.ones(2), torch.ones(2, dtype=torch.bool)),
            "expected weights of at least 0, found -1.0",
        ),
    ],
)
def test_outcomes_that_mean_nothing_are_refused(outcomes, message):
    with pytest.raises(ValueError, match=message):
        EvoGM(4, -torch.ones(2), torch.ones(2), proposal="screened", outcomes=outcomes)


@pytest.mark.parametrize(("dim", "pop_size"), [(300, 4), (3, 300)])
def test_more_dimensions_or_points_in_a_step_than_rows(dim, pop_size):
    torch.manual_seed(0)
    algorithm = EvoGM(pop_size, -torch.ones(dim), torch.ones(dim), epochs=1, hidden_dims=(8,))
    workflow = StdWorkflow(algorithm, Sphere())
    workflow.init_step()
    workflow.step()
    assert (
        workflow.algorithm.record_step()["pop"].shape == (pop_size, dim)
        and int(workflow.algorithm.count) > pop_size - 1
    )


def test_more_evaluations_than_rows_drop_the_worst(monkeypatch):
    monkeypatch.setattr("evox_evogm.algorithms.evogm.ROWS", 20)
    torch.manual_seed(0)
    workflow = StdWorkflow(
        EvoGM(8, -torch.ones(3), torch.ones(3), proposal="screened", epochs=2), Ackley()
    )
    workflow.init_step()
    for _ in range(4):
        workflow.step()
    assert int(workflow.algorithm.count) == 20 and bool(
        (workflow.algorithm.fitness.diff() >= 0).all()
    )
