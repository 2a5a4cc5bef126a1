"""Progress as it is counted from a history, and as a log and a terminal show it."""

import io

import pytest
from rich.console import Console

from evox_evogm.command.progress import (
    Progress,
    ProgressBar,
    ProgressCounter,
    ProgressLines,
    show_progress,
)

FAILED = {"score": None}
PRUNED = {"score": 0.75, "cost": 0.25, "estimate": 0.75}


def test_a_pruned_merge_counts_as_a_fraction_and_a_failed_one_has_no_score():
    records = [FAILED, {"score": 0.5}, PRUNED, {"score": 0.25}]
    reported = []
    counter = ProgressCounter(10, records, 0, reported.append)
    counter.report(["two", "evaluations"])
    counter.report(["two", "more"])
    assert [progress.done for progress in reported] == [1.0, 2.0, 2.25, 3.25]
    assert [progress.score for progress in reported] == [float("-inf"), 0.5, 0.75, 0.25]
    assert [progress.best for progress in reported] == [float("-inf"), 0.5, 0.75, 0.75]
    assert counter.done == 3.25 and counter.position == 4


def test_evaluations_of_an_earlier_process_count_but_tell_nothing_of_the_time_left():
    records = [{"score": 1.0}, {"score": 0.5}]
    reported = []
    counter = ProgressCounter(4, records, 1, reported.append)
    assert counter.done == 1.0
    counter.report(["repeated"])
    records.append({"score": 0.0})
    counter.report(["new"])
    assert [progress.done for progress in reported] == [2.0, 3.0]
    assert [progress.best for progress in reported] == [1.0, 1.0]
    last = reported[-1]
    assert last.seconds_left == pytest.approx(last.seconds)  # one was made, one is left


def progress_of(done, seconds_left=0.0):
    return Progress(done, 3, 0.5, 0.75, 1.0, seconds_left)


def test_a_line_says_evaluations_best_score_and_time_left():
    expected = "2 of 3 evaluations, best score 0.7500, 2 min 05 s left"
    assert str(progress_of(2.25, seconds_left=125.2)) == expected


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, [1, 2, 3]), (1000.0, [1, 3])])
def test_a_log_gets_the_first_the_last_and_a_line_now_and_then(seconds, shown):
    file = io.StringIO()
    with ProgressLines(Console(file=file), seconds) as show:
        for done in (1, 2, 3):
            show(progress_of(done))
    lines = [f"{done} of 3 evaluations, best score 0.7500, 0 min 00 s left" for done in shown]
    assert file.getvalue().splitlines() == lines


def test_a_terminal_gets_a_bar_that_fits_in_80_columns_and_stays():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=80)
    with show_progress(console) as show:
        assert isinstance(show, ProgressBar)
        for done in (1, 2, 3):
            show(progress_of(done))
    assert "3 of 3 evaluations, best score 0.7500, 0 min 00 s left\n" in file.getvalue()
    assert isinstance(show_progress(Console(file=file)), ProgressLines)
