"""Which points are chosen for evaluation, and which one is recommended."""

import pytest
import torch

from evox_evogm import Outcomes, SurrogateSettings
from evox_evogm.algorithms import acquisition
from evox_evogm.algorithms.acquisition import (
    choose_batch,
    new_rows,
    select_batch,
    settings_number,
)
from evox_evogm.algorithms.process_device import in_float64
from evox_evogm.algorithms.recommendation import recommend
from evox_evogm.algorithms.surrogate import Surrogate

NO_OUTCOMES = Outcomes(
    torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
)
DEFAULT = SurrogateSettings()
BOX = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None].expand(2, 3)


def forty_candidates():
    generator = torch.Generator().manual_seed(3)
    return 2 * torch.rand(40, 3, generator=generator, dtype=torch.float64) - 1


def select(points, fitness, seed, pop_size, settings=DEFAULT):
    count = torch.tensor(len(points))
    number = settings_number(settings)
    return select_batch(
        points, fitness, count, BOX, *NO_OUTCOMES, torch.tensor(seed), pop_size, 3, number
    )


def test_a_choice_is_entered_as_if_its_mean_had_been_observed(data, monkeypatch):
    """The variance of the others after a choice is that of a process with one more point."""
    points, outcomes = data
    surrogate = Surrogate(points, outcomes[:, :1], *NO_OUTCOMES)
    candidates, seen = forty_candidates(), []
    believe_mean = acquisition.believe_mean

    def listen(surrogate, shortlist, posterior, choice, explained):
        believe_mean(surrogate, shortlist, posterior, choice, explained)
        seen.append(posterior.variance[:, 0].clone())

    monkeypatch.setattr(acquisition, "believe_mean", listen)
    chosen = choose_batch(surrogate, candidates, 4, torch.Generator().manual_seed(4)).tolist()
    assert len(set(chosen)) == 4
    process = surrogate.process
    for count in (1, 2, 3):
        more = torch.cat([points, candidates[chosen[:count]]])
        noise = process.noise * torch.eye(len(more), dtype=torch.float64)
        inverse = torch.linalg.inv(process.covariance(more, more) + noise)
        cross = process.covariance(candidates, more)
        expected = process.variance - (cross @ inverse * cross).sum(1)
        variance = seen[count - 1]  # of the shortlist, which has another order
        assert torch.allclose(variance.sort().values, expected.sort().values, atol=1e-8)


def test_every_fifth_choice_is_made_by_the_prediction_around_a_point(data):
    points, outcomes = data
    surrogate = Surrogate(points, outcomes[:, :1], *NO_OUTCOMES)
    candidates = forty_candidates()
    first, second = candidates[surrogate.predict(candidates).argsort(descending=True)[:2]].tolist()
    around = {tuple(first): -2e6, tuple(second): -1e6}

    def predict_around(rows):
        return torch.tensor([around.get(tuple(row), 0.0) for row in rows.tolist()]).double()

    surrogate.predict_around = predict_around
    chosen = choose_batch(surrogate, candidates, 7, torch.Generator().manual_seed(4))
    assert candidates[chosen[0]].tolist() == first and candidates[chosen[5]].tolist() == second


def test_batches_repeat_with_their_seed_and_lie_in_the_box(data):
    points, outcomes = data
    first, again, other = (select(points, outcomes[:, :1], seed, 6) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (6, 3) and float(first.abs().max()) <= 1
    assert len(first.unique(dim=0)) == 6


def test_runs_together_get_the_batches_that_they_get_alone(data):
    points, outcomes = data
    seeds = torch.tensor([5, 6])

    def stack(tensor):
        return tensor.expand(2, *tensor.shape)

    together = select_batch.run_many(
        stack(points),
        stack(outcomes[:, :1]),
        torch.tensor([15, 15]),
        stack(BOX),
        *map(stack, NO_OUTCOMES),
        seeds,
        6,
        3,
        settings_number(DEFAULT),
    )
    for row, seed in enumerate(seeds.tolist()):
        assert torch.equal(together[row], select(points, outcomes[:, :1], seed, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_failed_is_recognised_in_every_dtype(dtype):
    fitness = torch.tensor([[torch.finfo(dtype).max], [2.0]], dtype=dtype)
    points = torch.zeros(2, 3, dtype=dtype)
    _, found = in_float64(points, fitness, torch.device("cpu"))
    assert found.tolist() == [[torch.inf], [2.0]]


def test_evaluated_points_and_equal_ones_are_no_candidates():
    candidates = torch.tensor([[1.0, 1.0], [0.5, 0.25], [1.0, 1.0], [-1.0, 1.0]]).double()
    evaluated = torch.tensor([[-1.0, 1.0], [0.0, 0.0]]).double()
    assert new_rows(candidates, evaluated).tolist() == [1, 0]  # in the order of their coordinates


def test_a_batch_is_chosen_by_the_predictions_of_its_candidates(data, monkeypatch):
    """Predictions of the rounds are used again, though evaluated and equal points are left out."""
    points = torch.cat([data[0], torch.ones(1, 3).double()])
    fitness, seen = -points.sum(1, keepdim=True), []

    def listen(surrogate, candidates, count, generator, predictions):
        again = surrogate.predict_points_with_deviation(candidates)
        for known, expected in zip(predictions, again, strict=True):
            assert torch.allclose(known, expected, rtol=0, atol=1e-12)
        seen.append(len(candidates))
        return choose_batch(surrogate, candidates, count, generator)

    found = select(points, fitness, 0, 6)
    monkeypatch.setattr(acquisition, "choose_batch", listen)
    assert torch.equal(select(points, fitness, 0, 6), found)
    assert seen[0] < 3 * 1500 + 1500  # noise is cut off at the corner again and again


def test_a_batch_at_a_corner_of_the_box_has_different_points(data):
    """The best of a plane is the corner, to which noise is cut off again and again."""
    points = torch.cat([data[0], torch.ones(1, 3).double()])
    found = select(points, -points.sum(1, keepdim=True), 0, 6)
    assert len(torch.cat([points, found]).unique(dim=0)) == 22


def test_the_first_of_a_batch_is_better_by_its_own_measure_with_more_rounds(data):
    points, outcomes = data
    measure = Surrogate(points, outcomes[:, :1], *NO_OUTCOMES)
    predicted = []
    for rounds in (1, 2, 4):
        # A long shortlist, so that more rounds are more to choose from.
        settings = SurrogateSettings(score_beta=0.0, shortlist=10_000, candidate_rounds=rounds)
        found = select(points, outcomes[:, :1], 0, 2, settings)
        predicted.append(float(measure.predict(found)[0]))
    assert predicted[2] < predicted[1] < predicted[0]


def test_another_default_device_does_not_matter(data):
    points, outcomes = data
    fitness, seed, number = outcomes[:, :1], torch.tensor(5), settings_number(DEFAULT)
    arguments = (points, fitness, torch.tensor(15), BOX, *NO_OUTCOMES, seed, 6, 3, number)
    batch = select_batch(*arguments)
    point = recommend(points, fitness, NO_OUTCOMES, BOX, DEFAULT)
    with torch.device("meta"):
        assert torch.equal(select_batch(*arguments), batch)
        assert torch.equal(recommend(points, fitness, NO_OUTCOMES, BOX, DEFAULT), point)


def test_equal_settings_have_one_number_and_others_another():
    number = settings_number(SurrogateSettings(beta=0.123))
    assert settings_number(SurrogateSettings(beta=0.123)) == number
    assert settings_number(SurrogateSettings(beta=0.124)) != number


def test_the_first_points_over_blocks_are_those_over_one_coordinate_a_block(data):
    points, outcomes = data
    fitness = outcomes[:, :1]

    def twice(tensor):  # two coordinates a block
        return tensor.repeat_interleave(2, 1)

    def select_in(points, bounds, settings):
        return select_batch(
            points,
            fitness,
            torch.tensor(15),
            bounds,
            *NO_OUTCOMES,
            torch.tensor(5),
            6,
            3,
            settings_number(settings),
        )

    alone = select_in(points, BOX, DEFAULT)
    settings = SurrogateSettings(coarse_points_per_block=6)  # 18 in all, and there are 15
    in_blocks = select_in(twice(points), twice(BOX), settings)
    assert torch.equal(in_blocks, twice(alone))
    point = recommend(points, fitness, NO_OUTCOMES, BOX, DEFAULT)
    wide = recommend(twice(points), fitness, NO_OUTCOMES, twice(BOX), DEFAULT, blocks=3)
    assert torch.equal(wide, twice(point[None])[0])
    later = select_in(twice(points), twice(BOX), SurrogateSettings(coarse_points_per_block=5))
    assert not torch.equal(later[:, ::2], later[:, 1::2])
