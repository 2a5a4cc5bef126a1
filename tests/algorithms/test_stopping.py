"""What the last evaluations of a search have gained."""

import math

import pytest
import torch

from evox_evogm import GradientSearch, Outcomes, SurrogateEvoGM
from evox_evogm.algorithms.stopping import gain_by_surrogate, gain_by_windows, should_stop

NONE = Outcomes(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
BOX = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
OPTIMUM = torch.tensor([0.4, -0.3])


def parabola(points):
    return (points - OPTIMUM).square().sum(1, keepdim=True)


def points_near(center, std, count=12):
    generator = torch.Generator().manual_seed(1)
    return torch.tensor(center) + std * torch.randn(count, 2, generator=generator)


def test_the_gain_is_the_difference_in_fitness_of_what_would_have_been_recommended():
    """Of the best point before and the optimum that the last points show."""
    before, last = points_near([-0.6, -0.6], 0.15), points_near([0.4, -0.3], 0.15)
    points = torch.cat([before, last]).clamp(-1, 1)
    fitness = parabola(points)
    gain = gain_by_surrogate(points, fitness, NONE, BOX, last=12)
    # Without outcomes these are evaluated points. The surrogate caps bad fitness.
    full = float(fitness[:12].min() - fitness.min())
    assert 0.5 * full < gain < full + 0.05 and full > 0.5


def test_more_points_at_the_optimum_gain_nothing():
    points = torch.cat([points_near([0.4, -0.3], 0.3), points_near([0.4, -0.3], 0.05)])
    assert abs(gain_by_surrogate(points, parabola(points), NONE, BOX, last=12)) < 0.02


def test_with_outcomes_luck_on_dev_is_no_gain():
    """The last points put a few outcomes just above 0 that other examples would not."""
    generator = torch.Generator().manual_seed(2)
    points = points_near([0.0, 0.0], 0.3, 40)
    margins = torch.randn(1, 50, generator=generator) * 0.5 + 0 * points[:, :1]
    margins = margins + 0.02 * torch.randn(40, 50, generator=generator)
    score = (margins > 0).float().mean(1, keepdim=True)  # the share of wrong answers
    outcomes = Outcomes(torch.full((50,), 1 / 50), torch.ones(50, dtype=torch.bool))
    order = score[:, 0].argsort(descending=True)  # the best scores come last
    fitness = torch.cat([score, margins], 1)[order]
    gain = gain_by_surrogate(points[order], fitness, outcomes, BOX, last=20)
    seen = float(fitness[:20, 0].min() - fitness[20:, 0].min())
    assert seen > 0.01 and abs(gain) < seen / 2


def test_points_with_one_value_a_block_gain_what_they_gain_over_one_coordinate_a_block():
    points = torch.cat([points_near([-0.6, -0.6], 0.15), points_near([0.4, -0.3], 0.15)])
    margins = torch.cat([points - OPTIMUM, OPTIMUM - points], 1)
    fitness = torch.cat([parabola(points), margins], 1)
    outcomes = Outcomes(torch.full((4,), 1 / 4), torch.zeros(4, dtype=torch.bool))

    def gain(repeats, **blocks):
        given = points.repeat_interleave(repeats, 1)
        box = BOX.repeat_interleave(repeats, 1)
        return gain_by_surrogate(given, fitness, outcomes, box, last=8, **blocks)

    assert gain(3, blocks=2) == gain(1) != gain(3)


def test_windows_are_compared_by_their_means_without_failures():
    values = torch.tensor([9.0, 5.0, 3.0, torch.inf, 1.0, 2.0])
    assert gain_by_windows(values, 2) == 3.0 - 1.5
    assert gain_by_windows(values, 3) == pytest.approx((9 + 5 + 3) / 3 - 1.5)
    assert math.isnan(gain_by_windows(torch.full((4,), torch.inf), 2))


@pytest.mark.parametrize("last", [0, 4])
def test_too_few_evaluations_are_refused(last):
    points = points_near([0.0, 0.0], 0.3, 4)
    with pytest.raises(ValueError, match=r"last: expected 1 to 3 evaluations, found"):
        gain_by_surrogate(points, parabola(points), NONE, BOX, last)
    with pytest.raises(ValueError, match=r"last: expected 1 to 2 evaluations, found"):
        gain_by_windows(torch.zeros(4), last)


class Course:
    """A search with known gains, that notes how many evaluations it was asked about."""

    pop_size = 3

    def __init__(self, gains):
        self.gains, self.asked = gains, []

    def recent_gain(self, points, fitness, last):
        self.asked.append((len(points), last))
        return self.gains(len(points))


def stops_at(course, cost=1.0, until=160):
    for count in range(3, until, 3):
        if should_stop(course, torch.zeros(count, 2), torch.zeros(count, 1), cost=cost):
            return count
    return None


def test_a_search_stops_when_a_window_has_gained_too_little():
    assert stops_at(Course(lambda count: 0.4 / count)) == 84  # .4 / 80 is the limit; after 78 not
    assert stops_at(Course(lambda count: 0.01)) is None
    assert stops_at(Course(lambda count: math.nan)) is None


def test_it_makes_two_windows_and_is_looked_at_five_times_in_a_window():
    course = Course(lambda count: 1.0)
    stops_at(course, until=100)
    assert course.asked == [(60, 30), (66, 30), (72, 30), (78, 30), (84, 30), (90, 30), (96, 30)]


def test_a_point_that_costs_more_makes_windows_of_fewer_points():
    course = Course(lambda count: 1.0)
    stops_at(course, cost=3.0, until=40)
    assert course.asked == [(count, 10) for count in range(21, 40, 3)]


def test_both_searches_say_what_their_last_evaluations_gained():
    points = torch.cat([points_near([-0.6, -0.6], 0.15), points_near([0.4, -0.3], 0.15)])
    points = points.clamp(-1, 1)
    lb, ub = torch.tensor([9.0, 18.0]), torch.tensor([11.0, 22.0])  # the same box elsewhere
    search = SurrogateEvoGM(3, lb, ub)
    expected = gain_by_surrogate(points, parabola(points), NONE, BOX, last=12)
    moved = torch.tensor([10.0, 20.0]) + torch.tensor([1.0, 2.0]) * points
    assert search.recent_gain(moved, parabola(points), 12) == pytest.approx(expected, abs=1e-3)

    signs = Outcomes(torch.tensor([0.5, 0.5]), torch.tensor([True, True]))
    gradients = GradientSearch(torch.zeros(2), outcomes=signs)
    margins = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-4.0, 0.0], [0.0, -4.0]])  # of wrong answers
    fitness = torch.cat([torch.zeros(4, 1), margins], 1)
    gain = gradients.recent_gain(torch.zeros(4, 2), fitness, 2)
    assert gain == pytest.approx(0.5 / (1 + math.exp(-4)) - 0.25)
    failed = fitness.clone()
    failed[0] = torch.inf
    assert gradients.recent_gain(torch.zeros(4, 2), failed, 2) == pytest.approx(gain)
