"""What `evogm merge` takes and prints: settings as words, --json, --quiet, and its run folder."""

import json

import pytest
import yaml
from builders import change_settings, history, merge

from evox_evogm.command import cli


@pytest.fixture
def small(project):
    """A project with a budget of one population."""
    change_settings(project, budget=4)
    return project


def test_words_replace_settings_and_the_run_keeps_what_was_used(small):
    assert merge(small, "seed=9", "search.epochs=2", "tasks.1.dev=2", "budget=8") == 0
    config = yaml.safe_load((small / "out" / "config.yaml").read_text())
    assert (config["seed"], config["budget"], config["search"]["epochs"]) == (9, 8, 2)
    assert config["search"]["hidden_dims"] == [8] and config["tasks"][1]["dev"] == 2
    assert len(history(small / "out")) == 8


@pytest.mark.lengthy
def test_who_goes_on_need_not_give_the_words_again(small, capfd):
    words = ["seed=9", "search.epochs=2", "--budget", "8"]
    assert merge(small, *words) == 0
    assert (
        "budget 8: 8 evaluations, 2 populations of 4 merges evaluated together\n"
        in capfd.readouterr().out
    )
    assert merge(small) == 0
    printed = capfd.readouterr().out
    assert "as this run was begun: seed=9 search.epochs=2 budget=8\n" in printed
    assert "this run is finished" in printed
    assert merge(small, "search.epochs=3") == 2
    assert "found search.epochs 3 where it has 2;" in capfd.readouterr().err
    assert merge(small, "--budget", "13") == 0
    printed = capfd.readouterr().out
    assert "as this run was begun: seed=9 search.epochs=2\n" in printed
    assert "budget 13: 12 evaluations, 3 populations of 4 merges evaluated together\n" in printed
    assert merge(small) == 0  # with the budget that was given last
    assert "as this run was begun: seed=9 search.epochs=2 budget=13\n" in capfd.readouterr().out
    assert len(history(small / "out")) == 12
    config = yaml.safe_load((small / "out" / "config.yaml").read_text())
    assert (config["seed"], config["search"]["epochs"], config["budget"]) == (9, 2, 13)


def test_without_out_the_run_is_named_after_its_settings(small, monkeypatch):
    monkeypatch.chdir(small)
    assert cli.main(["merge", "run.yaml", "--quiet"]) == 0
    assert (small / "runs" / "run" / "result.json").is_file()


def test_json_is_a_line_per_evaluation_on_stdout_and_all_else_on_stderr(small, capfd):
    assert merge(small, "--json") == 0
    printed = capfd.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    recorded = history(small / "out")
    assert len(lines) == len(recorded) == 4
    best = float("-inf")
    for line, record in zip(lines, recorded, strict=True):
        best = max(best, record["score"])
        assert line["best"] == best and line["done"] == line["evaluation"] + 1
        for name in ("evaluation", "step", "score", "coefficients", "tasks"):
            assert line[name] == record[name]
        assert "examples" not in line
    assert "2 experts, 2 tasks" in printed.err and "scores, dev (which" in printed.err
    assert merge(small, "--json", "--budget", "8") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["evaluation"] for line in lines] == [4, 5, 6, 7]  # the new ones


def test_quiet_prints_errors_alone(small, capfd):
    assert merge(small, "--quiet") == 0
    printed = capfd.readouterr()
    assert printed.out == ""
    assert merge(small, "--quiet", "--budget", "3") == 2
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.startswith("evogm: budget: expected at least the 4")
