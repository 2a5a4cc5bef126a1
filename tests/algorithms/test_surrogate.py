"""What the surrogate makes of outcomes."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evox_evogm import SurrogateSettings
from evox_evogm.algorithms import surrogate as surrogate_module
from evox_evogm.algorithms.gaussian_process import GaussianProcess
from evox_evogm.algorithms.surrogate import Surrogate, predict_fitness, winsorize

NO_OUTCOMES = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
CANDIDATES = torch.tensor([[0.1, 0.2, -0.3], [0.9, -0.9, 0.0]], dtype=torch.float64)


def test_predicted_fitness_is_the_mean_over_draws_of_the_outcomes(data):
    points, outcomes = data
    weights, by_sign = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([False, True, True])
    process = GaussianProcess(points, outcomes)
    posterior = process.posterior(CANDIDATES)
    predicted, _ = predict_fitness(process, posterior, weights, by_sign)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200_000, 2, 3, generator=generator, dtype=torch.float64)
    spread = (posterior.variance + process.noise).sqrt() * process.scale
    draws = posterior.means + noise * spread
    fitness = (torch.where(by_sign, (draws > 0).double(), draws) @ weights).mean(0)
    assert torch.allclose(predicted, fitness, atol=5e-3)


@pytest.mark.parametrize(("count", "share"), [(1, 1.0), (3, 0.3)])
def test_a_score_deviates_by_all_of_its_deviation_and_a_sum_of_outcomes_by_a_share(
    data, count, share
):
    """A score alone was once taken for a sum of outcomes: searches explored too little."""
    points, outcomes = data
    process = GaussianProcess(points, outcomes[:, :count])
    posterior = process.posterior(CANDIDATES)
    meaning = torch.ones(count).double(), torch.zeros(count, dtype=torch.bool)
    _, deviation = predict_fitness(process, posterior, *meaning)
    expected = share * posterior.variance[:, 0].sqrt() * process.scale.sum()
    assert torch.allclose(deviation, expected)


def test_the_outcomes_of_a_merge_that_failed_are_the_worst_of_the_others():
    points = torch.eye(4, dtype=torch.float64)
    rows = [[1.0, 2.0, -1.0], [0.0, -2.0, -3.0], [1.0, 1.0, 4.0], [9.0, torch.nan, torch.inf]]
    weights, by_sign = torch.tensor([0.5, 0.5]), torch.tensor([False, False])
    surrogate = Surrogate(points, torch.tensor(rows).double(), weights, by_sign)
    # In the second column 1 is as far above the median -1 as the best is below it.
    means = torch.tensor([(2 - 2 + 1 + 2) / 4, (-1 - 3 + 1 + 1) / 4]).double()
    assert torch.allclose(surrogate.process.center, means)


def plain_covariance(process, first, second):
    """Matern 5/2 by its formula."""
    difference = (first[:, None] - second) / process.length_scales
    distance = math.sqrt(5) * difference.square().sum(2).sqrt()
    return process.variance * (1 + distance + distance**2 / 3) * (-distance).exp()


def predict_one_by_one(process, points, outcomes, weights, by_sign, noise_std, candidates):
    """Predicted fitness and its deviation by a process an outcome: slow, and plain."""
    fitness = torch.zeros(len(candidates), dtype=torch.float64)
    deviation = fitness.clone()
    for column, weight, counts_by_sign in zip(outcomes.T, weights, by_sign, strict=True):
        observed = column.isfinite()
        known, values = points[observed], column[observed]
        center, scale = values.mean(), values.std(correction=0)
        covariance = plain_covariance(process, known, known)
        inverse = torch.linalg.inv(covariance + process.noise * torch.eye(len(known)).double())
        cross = plain_covariance(process, candidates, known)
        mean = center + cross @ inverse @ (values - center)
        variance = process.variance - (cross @ inverse * cross).sum(1)
        if counts_by_sign:
            spread = ((variance + process.noise) * scale**2 + noise_std**2).sqrt()
            above = torch.distributions.Normal(0.0, 1.0).cdf(mean / spread)
            resolved = (variance / (variance + process.noise)).sqrt()
            fitness += weight * above
            deviation += 0.3 * weight * (above * (1 - above)).sqrt() * resolved
        else:
            fitness += weight * mean
            deviation += 0.3 * weight * scale * variance.sqrt()
    return fitness, deviation


@pytest.mark.parametrize("pruned", [False, True])
def test_predictions_are_those_of_a_process_an_outcome(pruned, monkeypatch):
    """Of two kinds of outcomes, in chunks of four candidates, with and without pruned rows."""
    monkeypatch.setattr(surrogate_module, "CHUNK_ELEMENTS", 160)
    monkeypatch.setattr(surrogate_module, "MIN_CHUNK", 1)
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    points, candidates = 2 * torch.rand(20, 3, **options) - 1, 2 * torch.rand(23, 3, **options) - 1
    outcomes = torch.tanh(points @ torch.randn(3, 40, **options)) - 0.2
    if pruned:
        outcomes[14:, 25:] = torch.nan
        outcomes[17:, 33:] = torch.nan
    weights, by_sign = torch.rand(40, **options), torch.rand(40, **options) < 0.6
    fitness = torch.cat([points[:, :1], outcomes], 1)
    surrogate = Surrogate(
        points,
        fitness,
        weights,
        by_sign,
        settings=SurrogateSettings(score_transform=lambda rows: rows),
    )
    median = outcomes[:, by_sign].abs().nanmedian()
    bent = torch.where(by_sign, 2 * median * torch.tanh(outcomes / (2 * median)), outcomes)
    plain = predict_one_by_one(
        surrogate.process, points, bent, weights, by_sign, 0.3 * median, candidates
    )
    found = surrogate.predict_points_with_deviation(candidates)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    torch.testing.assert_close(surrogate.predict(candidates), plain[0], rtol=0, atol=1e-9)

    noise = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    around = []
    for step in 0.05 * noise:
        arguments = points, bent, weights, by_sign, 0.6 * median, candidates + step
        around.append(predict_one_by_one(surrogate.process, *arguments)[0])
    expected = torch.stack(around).mean(0)
    torch.testing.assert_close(surrogate.predict_around(candidates), expected, rtol=0, atol=1e-9)


class LargestTensor(TorchDispatchMode):
    """Watches how many elements the largest new tensor has."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // 8)
        return result


def test_memory_does_not_grow_with_candidates_times_outcomes():
    """3,000 candidates and 2,000 outcomes are six million predictions, 46 MiB an operation."""
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.rand(10, 3, generator=generator, dtype=torch.float64) - 1
    outcomes = points @ torch.randn(3, 2000, generator=generator).double()
    fitness = torch.cat([points[:, :1], outcomes], 1)
    surrogate = Surrogate(points, fitness, torch.ones(2000), torch.ones(2000, dtype=torch.bool))
    candidates = 2 * torch.rand(3000, 3, generator=generator, dtype=torch.float64) - 1
    with LargestTensor() as largest:
        surrogate.predict(candidates)
        surrogate.predict_points_with_deviation(candidates)
        surrogate.predict_around(candidates[:500])
    assert largest.elements <= surrogate_module.CHUNK_ELEMENTS


def test_outcomes_that_count_by_their_sign_are_bent_and_what_decides_about_it_is_noisier(data):
    points, outcomes = data
    weights, by_sign = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([True, True, False])
    surrogate = Surrogate(points, torch.cat([outcomes[:, :1], outcomes], 1), weights, by_sign)
    typical = float(outcomes[:, :2].abs().flatten().sort().values[14])  # the lower median of 30
    bent = 2 * typical * torch.tanh(outcomes[:, :2] / (2 * typical))
    process = GaussianProcess(points, torch.cat([bent, winsorize(outcomes[:, 2:])], 1))
    posterior = process.posterior(CANDIDATES)
    variance = (posterior.variance + process.noise) * process.scale**2 + (0.3 * typical) ** 2
    above = torch.special.ndtr(posterior.means / variance.sqrt())
    expected = 0.5 * above[:, 0] + 0.3 * above[:, 1] + 0.2 * posterior.means[:, 2]
    assert torch.allclose(surrogate.predict(CANDIDATES), expected)


def test_an_outcome_that_is_not_finite_was_not_observed(data):
    points, outcomes = data
    fitness = torch.cat([outcomes[:, :1], outcomes], 1)
    missing, infinite = fitness.clone(), fitness.clone()
    missing[3, 2], infinite[3, 2] = torch.nan, -torch.inf
    meaning = torch.ones(3), torch.tensor([True, False, True])
    expected = Surrogate(points, missing, *meaning).predict(points)
    assert expected.isfinite().all()
    assert torch.equal(expected, Surrogate(points, infinite, *meaning).predict(points))


def test_fitness_far_above_the_median_counts_as_twice_its_distance_from_the_best():
    failed = torch.inf
    found = winsorize(torch.tensor([[1.0], [3.0], [4.0], [1e9], [failed], [failed]]).double())
    assert found[:, 0].tolist() == [1, 3, 4, 5, 5, 5]  # median 3 of the four that have a score
    assert winsorize(torch.full((2, 1), failed).double())[:, 0].tolist() == [0, 0]


def test_a_broken_merge_caps_in_its_own_column_alone():
    columns = torch.tensor([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0], [torch.nan, 1e9]]).double()
    capped = winsorize(columns)
    assert capped[:3].tolist() == columns[:3].tolist()
    assert capped[3, 0].isnan() and capped[3, 1] == 2 * 20 - 10  # the lower median of four


def test_margins_of_another_unit_in_one_task_predict_the_same_fitness(data):
    points, outcomes = data
    by_sign, groups = torch.ones(3, dtype=torch.bool), torch.tensor([0, 0, 1])
    weights = torch.full((3,), 1 / 3)
    other_unit = outcomes * torch.tensor([1.0, 1.0, 50.0])
    predicted = []
    for columns in (outcomes, other_unit):
        fitness = torch.cat([columns[:, :1], columns], 1)
        predicted.append(Surrogate(points, fitness, weights, by_sign, groups).predict(CANDIDATES))
    assert torch.allclose(predicted[0], predicted[1])
    one_group = Surrogate(points, fitness, weights, by_sign).predict(CANDIDATES)
    assert not torch.allclose(predicted[0], one_group)


def test_one_broken_merge_does_not_spoil_predictions_of_outcomes_that_count_as_they_are():
    """Sixty points of a paraboloid, one of which is a million times worse."""
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.rand(60, 3, generator=generator, dtype=torch.float64) - 1
    outcomes = points.square()
    outcomes[4] = 1e6
    meaning = torch.full((3,), 1 / 3), torch.zeros(3, dtype=torch.bool)
    candidates = 2 * torch.rand(300, 3, generator=generator, dtype=torch.float64) - 1
    truth = candidates.square().mean(1)
    fitness = torch.cat([outcomes[:, :1], outcomes], 1)

    def agreement(**settings):
        surrogate = Surrogate(points, fitness, *meaning, settings=SurrogateSettings(**settings))
        return float(torch.corrcoef(torch.stack([surrogate.predict(candidates), truth]))[0, 1])

    assert agreement() > 0.5 > 0.2 > agreement(score_transform=lambda rows: rows)


def test_another_transform_of_scores_is_an_argument(data):
    points, outcomes = data
    fitness = outcomes[:, :1]
    halved = Surrogate(
        points,
        fitness,
        *NO_OUTCOMES,
        settings=SurrogateSettings(score_transform=lambda rows: rows / 2),
    )
    plain = Surrogate(points, fitness / 2, *NO_OUTCOMES)
    assert torch.allclose(halved.predict(CANDIDATES), plain.predict(CANDIDATES))
