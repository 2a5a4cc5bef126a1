"""Runs whose evaluations take minibatches: what they count, how they go on, what they show."""

import json
from types import SimpleNamespace

import pytest
import yaml
from builders import change_settings, history, interrupt_searches, merge

from evox_evogm.command import cli
from evox_evogm.command.minibatch_settings import with_minibatches
from evox_evogm.command.run_folder import check_budget
from evox_evogm.command.settings import parse_settings
from evox_evogm.command.statuses import UNUSABLE_INPUT
from evox_evogm.monitoring.budget import Budget
from evox_evogm.monitoring.progress import full_evaluations

SEARCH = {"algorithm": "GradientSearch", "groups": "layer", "pop_size": 1, "search": {}}
NEEDED = {"base": "b", "experts": "e", "tasks": [{"json_lines": "d", "test_file": "t"}]}


def result_of(out):
    return json.loads((out / "result.json").read_text())


def test_a_run_counts_parts_of_evaluations_and_recommends_the_average(project, capsys):
    change_settings(project, **SEARCH, budget=12, minibatches=2)
    assert merge(project) == 0
    out, printed = project / "out", capsys.readouterr().out
    records, result = history(out), result_of(out)
    assert [record["cost"] for record in records] == [1.5] * 8
    assert result["evaluations"] == 8 and result["full_evaluations"] == 12
    for record in records:
        assert [len(places) for places in record["places"].values()] == [2, 2]
    assert "mean score of the last 8" in printed and "best score" not in printed
    point = [value for row in result["coefficients_by_group"].values() for value in row.values()]
    evaluated = [record["coefficients"] for record in records]
    assert point not in evaluated
    row = json.loads((out / "scores_by_example.json").read_text())["rows"][-1]
    assert {name: len(scores) for name, scores in row["dev"].items()} == {"sums": 4, "quiz": 4}
    assert yaml.safe_load((out / "config.yaml").read_text())["minibatches"] == 2
    page = (out / "report.html").read_text()
    assert "Scores on minibatches" in page and "Best dev score so far" not in page


def test_a_report_says_what_the_evaluations_were(project):
    change_settings(project, **SEARCH, budget=12, minibatches=2, test_points=3, trackers=[])
    assert merge(project) == 0
    text = (project / "out" / "report.md").read_text()
    assert "in 8 evaluations, each on one of 2 parts of 8 dev examples of 2 tasks" in text
    assert "(with gradients, each on one of 2 minibatches: as much as 12.0 on all examples" in text
    assert "the recommended merge, an average of the points of the search." in text
    assert "pruned" not in text and "observed dev score" not in text
    data = json.loads((project / "out" / "report_data.json").read_text())
    expected = "test_points: expected merges with scores on all dev examples, found none"
    assert data["test_points"]["failure"] == f"RuntimeError: {expected}"


def test_a_confirmation_is_refused_before_it_touches_a_finished_run(project, capsys):
    change_settings(project, **SEARCH, budget=12, minibatches=2)
    assert merge(project) == 0
    before = {path.name: path.read_bytes() for path in (project / "out").glob("*.*")}
    change_settings(project, minibatches="auto")
    assert merge(project, "--confirm", "2") == UNUSABLE_INPUT
    expected = "confirm: expected null with 2 minibatches, found 2; no merge of the search has a"
    assert expected in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (project / "out").glob("*.*")} == before


def test_a_budget_may_be_what_was_used_up_to_rounding(tmp_path):
    """21 evaluations on one of 7 minibatches are 9, and a little more as floats."""
    records = [{"cost": 3 / 7}] * 21
    assert full_evaluations(records) > 9
    check_budget(Budget(9), records, tmp_path)
    with pytest.raises(ValueError, match="budget: expected at least the 9 evaluations"):
        check_budget(Budget(8), records, tmp_path)


def test_an_interrupted_run_goes_on_bit_for_bit(project, monkeypatch):
    change_settings(project, **SEARCH, budget=12, minibatches=2)
    assert merge(project, out="whole") == 0
    with monkeypatch.context() as patch:
        interrupt_searches(patch, 3)
        assert merge(project) == cli.INTERRUPTED
    assert merge(project) == 0
    assert history(project / "out") == history(project / "whole")


def test_a_larger_budget_goes_on_with_the_same_minibatches(project):
    change_settings(project, **SEARCH, budget=6, minibatches=2)
    assert merge(project) == 0
    before = history(project / "out")
    change_settings(project, minibatches="auto")
    assert merge(project, "--budget", "12") == 0
    after = history(project / "out")
    assert after[: len(before)] == before and len(after) == 8
    assert {record["cost"] for record in after} == {1.5}


@pytest.mark.parametrize("again", ["auto", 1])
def test_a_run_of_a_version_without_minibatches_goes_on_without(project, monkeypatch, again):
    change_settings(project, **SEARCH, budget=12)
    with monkeypatch.context() as patch:
        interrupt_searches(patch, 2)
        assert merge(project) == cli.INTERRUPTED
    config = project / "out" / "config.yaml"
    table = yaml.safe_load(config.read_text())
    assert table.pop("minibatches") == 1  # there are too few examples for more
    config.write_text(yaml.safe_dump(table))
    change_settings(project, minibatches=again)
    assert merge(project) == 0
    assert {record["cost"] for record in history(project / "out")} == {3}


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"algorithm": "GradientSearch", "budget": 60}, 3),
        ({"algorithm": "GradientSearch", "budget": 160}, 1),
        ({"algorithm": "GradientSearch", "budget": "20min"}, 1),
        ({"algorithm": "GradientSearch", "budget": 60, "confirm": 3}, 1),
        ({"algorithm": "GradientSearch", "budget": 60, "minibatches": 5}, 5),
        ({"algorithm": "SurrogateEvoGM", "budget": 60}, 1),
    ],
)
def test_auto_gives_a_small_budget_more_steps(settings, count):
    dev = [SimpleNamespace(examples=[None] * 30) for _ in range(11)]
    found = with_minibatches(parse_settings({**NEEDED, **settings}, "s"), SimpleNamespace(dev=dev))
    assert found.minibatches == count


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"algorithm": "SurrogateEvoGM"},
            "minibatches: expected auto or 1 with algorithm SurrogateEvoGM, found 2; only "
            "GradientSearch follows gradients",
        ),
        (
            {"algorithm": "GradientSearch", "confirm": 3},
            "confirm: expected null with 2 minibatches, found 3; no merge of the search has",
        ),
    ],
)
def test_minibatches_are_refused_where_they_mean_nothing(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_settings({**NEEDED, **settings, "minibatches": 2}, "settings")
