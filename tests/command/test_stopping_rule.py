"""A search ends before its budget where it gains too little, in any process at the same place."""

import json
from types import SimpleNamespace

import pytest
import torch
from builders import change_settings, history, interrupt_searches, merge

from evox_evogm.algorithms import stopping
from evox_evogm.algorithms.surrogate_evogm import SurrogateEvoGM
from evox_evogm.command import stopping_rule

SMALL = {"algorithm": "SurrogateEvoGM", "search": {}, "pop_size": 3}


@pytest.fixture
def short_windows(monkeypatch):
    """Windows of 6 evaluations, so that a search may end after 12."""
    monkeypatch.setattr(stopping, "WINDOW", 6)
    monkeypatch.setattr(stopping_rule, "WINDOW", 6)


@pytest.fixture
def known_gains(short_windows, monkeypatch):
    """A search whose window gains .02 until it has made 15 evaluations, and then .001."""

    def recent_gain(self, points, fitness, last):
        assert len(points) == len(fitness) and last == 6
        return 0.02 if len(points) < 15 else 0.001

    monkeypatch.setattr(SurrogateEvoGM, "recent_gain", recent_gain)


def result_of(out):
    return json.loads((out / "result.json").read_text())


def steps_of(out):
    return [row for row in history(out) if not row.get("recommended")]


@pytest.mark.lengthy
def test_a_search_that_gains_too_little_ends_and_says_so(project, known_gains, capsys):
    change_settings(project, **SMALL, stop=0.005)
    assert merge(project, "--budget", "30", out="run") == 0
    result = result_of(project / "run")
    assert len(steps_of(project / "run")) == 15
    assert result["stopped"].startswith("the search ended before its budget, as its last 6 evaluat")
    assert "gained less than 0.005 (stop: 0.005)" in result["stopped"]
    assert result["stopped"] in capsys.readouterr().out
    assert "the search ended before its budget" in (project / "run" / "report.md").read_text()

    # A larger budget changes nothing; without the rule the search goes on.
    before = history(project / "run")
    assert merge(project, "--budget", "40", out="run") == 0
    assert history(project / "run") == before
    assert merge(project, "stop=null", "--budget", "24", out="run") == 0
    assert len(steps_of(project / "run")) == 21 and result_of(project / "run")["stopped"] is None


@pytest.mark.lengthy
def test_auto_ends_no_search_whose_scores_are_no_shares(project, known_gains):
    """One of the tasks is scored in nats."""
    change_settings(project, **SMALL)
    assert merge(project, "--budget", "22", out="run") == 0
    assert len(steps_of(project / "run")) == 21 and result_of(project / "run")["stopped"] is None


def test_auto_is_half_a_point_where_scores_are_shares_of_right_answers():
    def problem(*by_sign):
        return SimpleNamespace(outcomes=(None, torch.tensor(by_sign), None))

    settings = SimpleNamespace(stop="auto")
    assert stopping_rule.least_gain(settings, problem(True, True)) == 0.005
    assert stopping_rule.least_gain(settings, problem(True, False)) is None
    assert stopping_rule.least_gain(SimpleNamespace(stop=None), problem(True)) is None
    assert stopping_rule.least_gain(SimpleNamespace(stop=0.02), problem(False)) == 0.02


@pytest.mark.lengthy
def test_the_least_gain_can_be_stated(project, known_gains):
    change_settings(project, **SMALL, stop=0.0005)
    assert merge(project, "--budget", "22", out="run") == 0
    assert len(steps_of(project / "run")) == 21 and result_of(project / "run")["stopped"] is None
    change_settings(project, stop=0.03)
    assert merge(project, "--budget", "22", out="other") == 0
    assert len(steps_of(project / "other")) == 12


@pytest.mark.slow
def test_an_interrupted_search_ends_at_the_same_place(project, short_windows, monkeypatch):
    change_settings(project, **SMALL, stop=0.01)
    assert merge(project, "--budget", "60", out="whole") == 0
    made = len(steps_of(project / "whole"))
    assert 12 <= made < 59
    with monkeypatch.context() as interrupting:
        interrupt_searches(interrupting, steps=made // 3 - 1)
        assert merge(project, "--budget", "60", out="cut") == 130
    assert merge(project, "--budget", "60", out="cut") == 0
    assert history(project / "cut") == history(project / "whole")


@pytest.mark.parametrize("stop", [-0.1, "soon"])
def test_other_values_are_refused(project, capsys, stop):
    change_settings(project, stop=stop)
    assert merge(project) == 2
    assert "stop: expected auto, a" in capsys.readouterr().err
