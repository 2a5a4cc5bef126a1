"""Test scores of merges of the history: which, what is kept, and what the report shows."""

import json
import statistics

import pytest
from builders import change_settings, history, merge

from evox_evogm.command.history_on_test import choose_evenly
from evox_evogm.problems.population_scorer import PopulationScorer


def test_points_lie_evenly_in_the_order_of_dev_scores():
    scores = {(float(place),): {"x": score} for place, score in enumerate([3, 0, 4, 1, 2])}
    assert choose_evenly(scores, 3) == [2, 4, 1]  # scores 4, 2 and 0
    assert choose_evenly(scores, 2) == [2, 1]
    assert choose_evenly(scores, 1) == [2]
    assert choose_evenly(scores, 9) == [2, 0, 4, 3, 1]
    assert choose_evenly({}, 3) == []


@pytest.mark.slow
def test_they_are_scored_once_and_shown(project, monkeypatch, capsys):
    scored = []
    score = PopulationScorer.score

    def counting(scorer, pop, *rest, **named):
        scored.append(len(pop))
        return score(scorer, pop, *rest, **named)

    monkeypatch.setattr(PopulationScorer, "score", counting)
    change_settings(project, budget=8)
    out = project / "out"
    assert merge(project, "test_points=3") == 0
    points = json.loads((out / "report_data.json").read_text())["test_points"]
    assert (points["wanted"], len(points["points"])) == (3, 3)
    dev = [statistics.mean(record["tasks"].values()) for record in history(out)]
    assert points["points"][0]["dev"] == pytest.approx(max(dev))
    assert points["points"][-1]["dev"] == pytest.approx(min(dev))
    page = (out / "report.html").read_text()
    assert "Small dots: 3 merges that the search evaluated" in page
    scored.clear()
    assert merge(project) == 0 and scored == []  # the finished run has them
    assert merge(project, "test_points=2") == 0 and scored == []  # the best and the worst of three
    assert merge(project, "test_points=4") == 0 and sum(scored) <= 4
    points = json.loads((out / "report_data.json").read_text())["test_points"]["points"]
    assert len(points) == 4
    # The merge of the run was scored on test for the table: the same numbers.
    row = json.loads((out / "result.json").read_text())["scores"][-1]
    best = [point for point in points if point["dev"] == pytest.approx(max(dev))]
    assert best[0]["test"] == pytest.approx(statistics.mean(row["test"].values()), abs=1e-5)
