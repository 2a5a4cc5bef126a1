"""A run goes on with a larger budget, also when it is finished, as one that had it from the start.

What is right is the run in one piece: the searched points of both have to be the same.
"""

import json

import pytest
import yaml
from builders import change_settings, history, interrupt_searches, merge

from evox_evogm.command.merge_run import MergeRun
from evox_evogm.problems.population_scorer import PopulationScorer
from evox_evogm.resume.journal import encode_record, read_blocks
from evox_evogm.resume.resumable_search import saved_seconds

SURROGATE = {
    "algorithm": "SurrogateEvoGM",
    "search": {},
    "pop_size": 3,
}
GRADIENTS = {"algorithm": "GradientSearch", "search": ..., "pop_size": 1, "groups": "layer"}
RACING = {**SURROGATE, "racing": True}
CASES = {"surrogate": SURROGATE, "racing": RACING, "gradients": GRADIENTS, "paper": {}}
# Recommended merges that are evaluated. Where merges were pruned, one of the search is recommended.
LEAST = {"surrogate": 1, "racing": 0, "gradients": 1, "paper": 0}


def searched(out):
    """The evaluations that steps made, without their numbers."""
    rows = []
    for row in history(out):
        del row["evaluation"]
        if not row.pop("recommended", False):
            rows.append(row)
    return rows


def recommended(out):
    return [row for row in history(out) if row.get("recommended")]


def result_of(out, name="result.json"):
    return json.loads((out / name).read_text())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("surrogate", marks=pytest.mark.lengthy),
        pytest.param("paper", marks=pytest.mark.slow),
        pytest.param("racing", marks=pytest.mark.slow),
        pytest.param("gradients", marks=pytest.mark.slow),
    ],
)
def test_a_finished_run_goes_on_as_if_it_had_had_the_budget_from_the_start(project, case):
    change_settings(project, **CASES[case])
    assert merge(project, "--budget", "20", out="whole") == 0
    assert merge(project, "--budget", "12", out="cut") == 0
    first = history(project / "cut")
    assert merge(project, "--budget", "20", out="cut") == 0
    assert history(project / "cut")[: len(first)] == first
    assert searched(project / "cut") == searched(project / "whole")
    assert len(recommended(project / "cut")) >= LEAST[case]
    assert len(recommended(project / "whole")) <= 1
    one, other = result_of(project / "whole"), result_of(project / "cut")
    assert one["coefficients"] == other["coefficients"] and other["budget"] == 20
    assert other["evaluations"] == len(history(project / "cut"))
    assert result_of(project / "cut", "result_12.json")["budget"] == 12
    assert yaml.safe_load((project / "cut" / "config.yaml").read_text())["budget"] == 20


@pytest.mark.lengthy
def test_a_merge_is_evaluated_once_over_all_budgets(project, monkeypatch):
    scored = []
    score = PopulationScorer.score

    def watched(self, pop, tasks):
        for point in pop.tolist():
            scored.append((tuple(point), tuple(task.examples[0].prompt for task in tasks)))
        return score(self, pop, tasks)

    finish = MergeRun.finish

    def unwatched(self, best, rows):  # what the reports show besides is evaluated there
        with monkeypatch.context() as unwatching:
            unwatching.setattr(PopulationScorer, "score", score)
            return finish(self, best, rows)

    monkeypatch.setattr(PopulationScorer, "score", watched)
    monkeypatch.setattr(MergeRun, "finish", unwatched)
    change_settings(project, **SURROGATE)
    assert merge(project, "--budget", "7") == 0
    known = len(scored)
    assert merge(project, "--budget", "13") == 0
    new = scored[known:]
    assert len(new) == len(set(new)) and not set(new) & set(scored[:known])
    # Two steps of three and the recommended merge on dev, and this merge on test: the other rows
    # of the table are those of the first result.
    assert len(new) == 6 + 1 + 1


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_with_a_larger_budget_and_is_interrupted_again(
    project, monkeypatch
):
    change_settings(project, **SURROGATE)
    assert merge(project, "--budget", "16", out="whole") == 0
    assert merge(project, "--budget", "7", out="cut") == 0
    with monkeypatch.context() as process:
        interrupt_searches(process, steps=3)
        assert merge(project, "--budget", "16", out="cut") == 130
    assert not (project / "cut" / "result.json").exists()
    assert (project / "cut" / "result_7.json").exists()
    assert merge(project, "--budget", "16", out="cut") == 0
    assert searched(project / "cut") == searched(project / "whole")
    rows = [result_of(project / out)["scores"] for out in ("cut", "whole")]
    for one, other in zip(*rows, strict=True):
        assert one["test"] == pytest.approx(other["test"], abs=1e-5)


def test_a_smaller_budget_than_was_used_is_refused_in_one_sentence(project, capsys):
    change_settings(project, **SURROGATE)
    assert merge(project, "--budget", "13") == 0
    before = {path: path.read_bytes() for path in (project / "out").iterdir() if path.is_file()}
    capsys.readouterr()
    assert merge(project, "--budget", "12") == 2
    expected = "budget: expected at least the 13 evaluations that the run in"
    printed = capsys.readouterr().err
    assert expected in printed and "found 12" in printed and printed.count("\n") == 1
    assert merge(project, "--budget", "15") == 0  # too little for another step
    assert "leave no room for another step" in capsys.readouterr().out
    for path, content in before.items():
        assert path.read_bytes() == content


@pytest.mark.lengthy
def test_a_time_ends_the_search_after_a_step_and_a_longer_one_goes_on(project, capsys):
    change_settings(project, **SURROGATE)
    assert merge(project, "--budget", "0.001s") == 0
    rows = history(project / "out")
    assert [row["step"] for row in rows] == [0, 0, 0, 0] and rows[-1]["recommended"]
    assert merge(project, "--budget", "0.001s") == 0
    assert "this run is finished" in capsys.readouterr().out
    assert merge(project, "--budget", "10") == 0  # from a time to a number
    assert merge(project, "--budget", "10", out="whole") == 0
    assert searched(project / "out") == searched(project / "whole")
    assert merge(project, "--budget", "0.0001s") == 2
    assert "min that the run in" in capsys.readouterr().err


def test_the_time_of_earlier_processes_counts_training_too(project, capsys):
    change_settings(project, **SURROGATE)
    assert merge(project, "--budget", "10") == 0
    seconds = saved_seconds(project / "out")
    evaluated = sum(row["seconds"] for row in records_of(project / "out"))
    assert 0 < evaluated < seconds
    between = (evaluated + seconds) / 2
    assert merge(project, "--budget", f"{between:.4f}s") == 2  # more than evaluating took
    assert "min that the run in" in capsys.readouterr().err


def records_of(out):
    records = []
    for block in read_blocks(out / "history.jsonl"):
        records += block.records
    return records


def test_a_history_without_the_mark_of_its_recommended_merge_is_refused(project, capsys):
    change_settings(project, **SURROGATE)
    assert merge(project, "--budget", "7") == 0
    path = project / "out" / "history.jsonl"
    lines = []
    for block in read_blocks(path):
        for index, record in enumerate(block.records):
            record.pop("recommended", None)
            lines.append(encode_record({**record, "block": [index, len(block.records)]}))
    path.write_text("".join(lines))
    assert merge(project, "--budget", "13") == 2
    assert "which another version of evox-evogm finished" in capsys.readouterr().err
