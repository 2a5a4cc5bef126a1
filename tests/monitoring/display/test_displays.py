"""What a search shows while it runs: lines in a log, JSON for programs, a picture on a terminal."""

import io
import json
import time

import pytest
from rich.console import Console

from evox_evogm.monitoring.budget import Budget
from evox_evogm.monitoring.display.choose import show_progress
from evox_evogm.monitoring.display.facts import RunFacts
from evox_evogm.monitoring.display.lines import JsonLines, ProgressLines, Quiet
from evox_evogm.monitoring.display.live import LiveDisplay
from evox_evogm.monitoring.display.panel import panel
from evox_evogm.monitoring.display.sparkline import bar, sparkline
from evox_evogm.monitoring.progress import Progress, ProgressCounter


def facts_of(experts, notes=("the base is shy",)):
    return RunFacts(experts, 1, notes)


FACTS = facts_of(["first", "second"])


def progress_of(done, limit=3, seconds_left=0.0):
    record = {"evaluation": done - 1, "step": 0, "score": 0.5, "coefficients": [0.25, -0.5]}
    return Progress(
        done,
        Budget(limit),
        0.5,
        0.75,
        1.0,
        seconds_left,
        record=record,
        best_record={**record, "score": 0.75, "tasks": {"sums": 0.5, "quiz": 1.0}},
        scores=[0.5, 0.75],
    )


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, [1, 2, 3]), (1000.0, [1, 3])])
def test_a_log_gets_the_first_the_last_and_a_line_now_and_then(seconds, shown):
    file = io.StringIO()
    with ProgressLines(Console(file=file, width=20), seconds) as show:
        for done in (1, 2, 3):
            show(progress_of(done))
    lines = [f"{done} of 3 evaluations, best score 0.7500, 0 min 00 s left" for done in shown]
    assert file.getvalue().splitlines() == lines


def test_json_lines_hold_a_new_evaluation_each():
    file = io.StringIO()
    reported = JsonLines(file)
    known = [{"evaluation": 0, "score": 0.5}]
    counter = ProgressCounter(Budget(3), known, 0, reported)
    counter.report(known, 0)
    counter.report([{"evaluation": 1, "score": 0.25}, {"evaluation": 2, "score": None}], 1)
    assert [json.loads(line) for line in file.getvalue().splitlines()] == [
        {"evaluation": 1, "score": 0.25, "best": 0.5, "done": 2.0},
        {"evaluation": 2, "score": None, "best": 0.5, "done": 3.0},
    ]


def drawn(progress, facts, width, height):
    console = Console(
        record=True, width=width, height=height, file=io.StringIO(), force_terminal=True
    )
    console.print(panel(progress, facts, console))
    return console.export_text()


def test_the_picture_has_scores_speed_time_tasks_coefficients_and_findings():
    text = drawn(progress_of(2, seconds_left=61), FACTS, 80, 24)
    for part in ("2 of 3 evaluations", "1 min 01 s left", "best 0.750", "(evaluation 2)"):
        assert part in text
    assert "mean 0.625" in text and "note: the base is shy" in text
    text = " ".join(text.split())
    assert "sums 0.500 ████ quiz 1.000 ████████" in text
    assert "first +0.250 ████ second -0.500 ████████" in text


@pytest.mark.parametrize("size", [(60, 24), (80, 24), (120, 40), (200, 60), (30, 12)])
@pytest.mark.parametrize(("experts", "tasks"), [(1, 1), (8, 8), (64, 30)])
def test_the_picture_fits_into_any_terminal_also_with_many_experts_and_tasks(size, experts, tasks):
    width, height = size
    names = [f"an expert with a long name {number}" for number in range(experts)]
    scores = {f"ein_Test_für_漢字_{number}": number / 30 for number in range(tasks)}
    coefficients = [(-1) ** number * number / 64 for number in range(experts)]
    record = {"evaluation": 5, "score": 0.5, "coefficients": coefficients, "tasks": scores}
    progress = Progress(6, Budget(60), 0.5, 0.5, 60, 600, record, record, [0.1, float("-inf"), 0.5])
    text = drawn(progress, facts_of(names, [f"note {n} " + 90 * "x" for n in range(9)]), *size)
    console = Console(width=1000)
    lines = text.splitlines()
    assert max(console.measure(line).maximum for line in lines) <= width
    assert len(lines) <= max(height, 20)
    if experts == 64 and size == (60, 24):
        assert "and 25 more, from" in text  # of 30 tasks; the lowest are shown
        assert "漢字_0 " in text and "name 63" in text  # the lowest score, the largest size


def test_an_expert_with_several_groups_has_the_mean_of_its_coefficients():
    facts = RunFacts(["one", "two"], 2, [])
    assert facts.by_expert([1.0, 2.0, 3.0, 5.0]) == {"one": 1.5, "two": 4.0}


def test_a_coefficient_of_a_group_in_which_an_expert_has_nothing_is_in_no_mean():
    facts = RunFacts(["one", "two"], 2, [], [True, False, False, False])
    assert facts.by_expert([1.0, 2.0, 3.0, 5.0]) == {"one": 1.0, "two": 0.0}


def test_names_cannot_steer_the_terminal():
    text = drawn(progress_of(1), facts_of(["\x1b[31mred", "[bold]b[/]"], ["\x1b[2J"]), 80, 24)
    assert "\x1b" not in text and "[bold]b[/]" in text


def test_before_the_first_evaluation_and_without_scores_there_is_a_sentence():
    assert "the first evaluations" in drawn(None, FACTS, 80, 24)
    failed = Progress(1, Budget(3), float("-inf"), float("-inf"), 1, 1, {}, None, [float("-inf")])
    assert "no evaluation has a score yet" in drawn(failed, FACTS, 80, 24)


def test_a_sparkline_goes_from_the_lowest_to_the_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 7, 1, 0], 2) == "█▂"  # of two numbers the larger one
    assert sparkline([float("-inf"), 2, 2], 9) == "▁▁▁" and sparkline([], 9) == ""
    assert (bar(0.5, 8), bar(1.0 / 16, 8), bar(9, 2), bar(-1, 2)) == ("████", "▌", "██", "")


def test_a_terminal_gets_a_picture_that_stays_a_log_lines_and_quiet_nothing():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=80)
    with show_progress(console, FACTS) as show:
        assert isinstance(show, LiveDisplay)
        show(progress_of(3))
    assert "3 of 3 evaluations" in file.getvalue().split("first evaluations")[-1]
    log = Console(file=io.StringIO())
    assert isinstance(show_progress(log, FACTS), ProgressLines)
    assert isinstance(show_progress(console, FACTS, quiet=True), Quiet)
    assert isinstance(show_progress(console, FACTS, json_lines=True), JsonLines)


def test_drawing_takes_at_most_half_a_per_cent_of_the_time():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40)
    display = LiveDisplay(console, FACTS)
    slow = display.live.refresh

    def over_a_slow_line():
        time.sleep(0.05)
        slow()

    display.live.refresh = over_a_slow_line
    display.progress = progress_of(2)
    display._draw()
    assert display.pause >= 0.05 / 0.005
