"""Progress as it is counted from a history."""

import pytest

from evox_evogm.monitoring.budget import Budget
from evox_evogm.monitoring.progress import Progress, ProgressCounter, searched

FAILED = {"score": None}
PRUNED = {"score": 0.75, "cost": 0.25, "estimate": 0.75}
RECOMMENDED = {"score": 0.9, "recommended": True}


def test_a_pruned_merge_counts_as_a_fraction_and_a_failed_one_has_no_score():
    records = [FAILED, {"score": 0.5}, PRUNED, {"score": 0.25}]
    reported = []
    counter = ProgressCounter(Budget(10), [], 0, reported.append)
    counter.report(records[:2], 0)
    counter.report(records[2:], 2)
    assert [progress.done for progress in reported] == [1.0, 2.0, 2.25, 3.25]
    assert [progress.score for progress in reported] == [float("-inf"), 0.5, 0.75, 0.25]
    assert [progress.best for progress in reported] == [float("-inf"), 0.5, 0.75, 0.75]
    assert reported[-1].best_record is PRUNED and counter.done == 3.25


def test_scores_on_minibatches_have_a_moving_average_in_place_of_a_best():
    scores = [0.9, *[0.1] * 9, None, 0.3]
    reported = []
    counter = ProgressCounter(Budget(30), [], 0, reported.append, on_minibatches=True)
    counter.report([{"score": score, "cost": 0.75} for score in scores], 0)
    assert [progress.window for progress in reported] == [*range(1, 11), 9, 9]
    assert reported[9].best == pytest.approx(0.18) and reported[10].best == pytest.approx(0.1)
    assert reported[-1].best == pytest.approx((8 * 0.1 + 0.3) / 9)
    assert reported[-1].best_record == {"score": 0.3, "cost": 0.75}
    assert str(reported[9]).startswith("8 of 30 evaluations, mean score of the last 10 0.1800, ")
    assert counter.done == 9


def test_evaluations_of_an_earlier_process_count_but_tell_nothing_of_the_time_left():
    records = [{"score": 1.0, "seconds": 50.0}, {"score": 0.5, "seconds": 50.0}]
    reported = []
    counter = ProgressCounter(Budget(4), records, 1, reported.append)
    assert counter.done == 1.0
    counter.report(records[1:], 1)
    counter.report([{"score": 0.0}], 2)
    assert [progress.done for progress in reported] == [2.0, 3.0]
    assert [progress.best for progress in reported] == [1.0, 1.0]
    assert [progress.is_new for progress in reported] == [False, True]
    last = reported[-1]
    assert last.seconds_left == pytest.approx(last.seconds)  # one was made, one is left
    assert last.speed == pytest.approx(60 / last.seconds)


def test_a_point_recommended_with_a_smaller_budget_does_not_count_but_the_last_one_does():
    records = [{"score": 0.5}, RECOMMENDED, {"score": 0.25}]
    assert searched(records) == [records[0], records[2]]
    counter = ProgressCounter(Budget(9), records, 3, lambda progress: None)
    assert counter.done == 2.0
    counter.report([RECOMMENDED], 3)
    assert counter.done == 3.0


def test_time_is_that_of_all_processes():
    records = [{"score": 1.0, "seconds": 40.0}]
    reported = []
    counter = ProgressCounter(Budget(seconds=100.0), records, 1, reported.append, seconds=40.0)
    counter.report([{"score": 0.0, "seconds": 1.0}], 1)
    assert counter.seconds_used == pytest.approx(40.0, abs=1.0)
    assert reported[0].seconds_left == pytest.approx(60.0, abs=1.0)


@pytest.mark.parametrize(
    ("limit", "left", "line"),
    [
        (Budget(3), 125.2, "2 of 3 evaluations, best score 0.7500, 2 min 05 s left"),
        (Budget(3), 3725.0, "2 of 3 evaluations, best score 0.7500, 1 h 02 min left"),
        (Budget(seconds=60.0), 5.0, "2 evaluations, best score 0.7500, 0 min 05 s left"),
    ],
)
def test_a_line_says_evaluations_best_score_and_time_left(limit, left, line):
    assert str(Progress(2.25, limit, 0.5, 0.75, 1.0, left)) == line


def test_the_share_is_that_of_the_budget_or_of_the_time():
    assert Progress(2.0, Budget(8), 0, 0, 1.0, 9.0).share == 0.25
    assert Progress(2.0, Budget(seconds=10.0), 0, 0, 4.0, 6.0).share == pytest.approx(0.4)
