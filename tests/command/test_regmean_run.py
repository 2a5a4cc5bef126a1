"""Runs around the RegMean merge: their result, resuming, and settings that name no tasks."""

import json
import re

import pytest
import torch
from builders import change_settings, history, merge
from safetensors.torch import load_file

from evox_evogm.command import cli
from evox_evogm.problems.adapters import regmean_file
from evox_evogm.resume.resumable_search import ResumableSearch

SHORT = {"algorithm": "SurrogateEvoGM", "search": {}}


def rows_of(out):
    """The rows of the final table by name."""
    result = json.loads((out / "result.json").read_text())
    return {row["name"]: row for row in result["scores"]}


def test_the_result_shows_the_regmean_merge_beside_the_experts_as_they_are(project, capsys):
    change_settings(project, regmean={"first": "sums", "second": ["quiz", "sums"]}, **SHORT)
    assert merge(project) == 0
    out = project / "out"
    first_evaluation = history(out)[0]
    assert first_evaluation["coefficients"] == [1.0, 1.0]
    result = json.loads((out / "result.json").read_text())
    assert result["adapter"]["largest_relative_difference"] < 1e-6
    rows = rows_of(out)
    assert list(rows) == ["base", "first", "second", "average", "RegMean", "SurrogateEvoGM"]
    assert rows["RegMean"]["dev"] == first_evaluation["tasks"]
    assert "1 for each is the RegMean merge" in (out / "report.md").read_text()
    shown = capsys.readouterr().out
    assert "regressing the experts on their tasks" in shown
    words = "coefficients of the regressed experts (1 for each is the RegMean merge): first"
    assert words in shown

    change_settings(project, regmean=...)
    assert merge(project, out="plain") == 0
    plain = rows_of(project / "plain")
    for name in ("base", "first", "second", "average"):
        assert rows[name]["test"] == pytest.approx(plain[name]["test"])


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(project, monkeypatch):
    def stop_after_two_steps(search, steps):
        run(search, 2)
        raise KeyboardInterrupt

    change_settings(project, regmean={"first": "sums", "second": "quiz"}, **SHORT)
    assert merge(project, out="whole") == 0
    run = ResumableSearch.run
    monkeypatch.setattr(ResumableSearch, "run", stop_after_two_steps)
    assert merge(project, out="cut") == 130
    monkeypatch.setattr(ResumableSearch, "run", run)
    assert len(history(project / "cut")) == 8
    monkeypatch.setattr(regmean_file, "regress", None)  # the first process has kept the experts
    assert merge(project, out="cut") == 0
    assert history(project / "cut") == history(project / "whole")
    results = []
    for out in ("cut", "whole"):
        results.append(json.loads((project / out / "result.json").read_text()))
    assert results[0]["coefficients"] == results[1]["coefficients"]
    assert results[0]["scores"] == results[1]["scores"]
    change_settings(project, regmean={"first": "quiz", "second": "sums"})
    assert merge(project, out="cut") == 2


@pytest.mark.parametrize(
    "regmean, words", [("weights", "their weights"), ("prompts", "the prompts of all tasks")]
)
def test_a_run_needs_no_tasks_of_experts_and_goes_on(project, capsys, regmean, words):
    change_settings(project, regmean=regmean, **SHORT)
    assert merge(project) == 0
    out = project / "out"
    result = json.loads((out / "result.json").read_text())
    assert result["regmean"] == regmean
    assert result["adapter"]["largest_relative_difference"] < 1e-6
    assert rows_of(out)["RegMean"]["dev"] == history(out)[0]["tasks"]
    sentence = f"Of the experts regressed on {words}: 1 for each is the RegMean merge."
    assert sentence in (out / "report.md").read_text()
    assert sentence in (out / "adapter" / "README.md").read_text()
    assert f"regressing the experts on {words}" in capsys.readouterr().out
    before = history(out)
    (out / "result.json").unlink()  # as if the process had ended before it was written
    assert merge(project) == 0
    assert history(out) == before
    assert json.loads((out / "result.json").read_text())["scores"] == result["scores"]
    other = {"weights": "prompts", "prompts": "weights"}
    change_settings(project, regmean=other[regmean])
    assert merge(project) == 2


def test_experts_as_they_are_take_part_beside_the_regressed_ones(project, capsys):
    own = {"first": "sums", "second": "quiz"}
    change_settings(project, regmean=own, keep_experts=True, **SHORT)
    assert merge(project) == 0
    out = project / "out"
    assert history(out)[0]["coefficients"] == [0.0, 0.0, 1.0, 1.0]
    result = json.loads((out / "result.json").read_text())
    names = ["first", "second", "first (regressed)", "second (regressed)"]
    assert list(result["coefficients"]) == names
    assert result["adapter"]["largest_relative_difference"] < 1e-6
    assert list(result["licences"]["parts"]) == ["base", "first", "second"]
    rows = rows_of(out)
    assert list(rows) == ["base", "first", "second", "average", "RegMean", "SurrogateEvoGM"]
    assert rows["RegMean"]["dev"] == history(out)[0]["tasks"]
    sentence = (
        "of the experts as they are, and of the same experts regressed on their tasks: 0 for each "
        "of the first and 1 for each of the second is the RegMean merge."
    )
    for page in (out / "report.md", out / "report.html", out / "adapter" / "README.md"):
        assert sentence[1:] in page.read_text()  # "Of" or "of"
    assert (
        "merges of 2 LoRA experts, as they are and regressed on their tasks, of"
        in (out / "report.md").read_text()
    )
    assert "1 for each regressed one and 0 for the others is the RegMean" in capsys.readouterr().out

    assert "<title>Merge of 2 LoRA experts: report</title>" in (out / "report.html").read_text()
    card = (out / "adapter" / "README.md").read_text()
    assert "weighted sum of 2 LoRA experts" in card
    row = rf"\| first \(regressed\) \| {result['coefficients']['first (regressed)']:+.4f} \| "
    licence = result["licences"]["parts"]["first"]
    assert re.search(row.replace("+", r"\+") + licence, card.replace("\\", ""))

    before = history(out)
    (out / "result.json").unlink()
    assert merge(project) == 0
    assert history(out) == before
    assert cli.main(["export", str(out), "--out", str(project / "again")]) == 0
    again = load_file(project / "again" / "adapter_model.safetensors")
    for name, tensor in load_file(out / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(again[name], tensor)
    change_settings(project, keep_experts=...)
    assert merge(project) == 2


def test_a_check_names_every_expert_once(project, capsys):
    own = {"first": "sums", "second": "quiz"}
    change_settings(project, regmean=own, keep_experts=True, **SHORT)
    assert cli.main(["check", str(project / "run.yaml")]) == 0
    shown = capsys.readouterr().out
    experts = [line.split(",")[0] for line in shown.splitlines() if line.startswith("expert:")]
    assert experts == ["expert: first", "expert: second"]
    assert "the RegMean merge on dev: score" in shown


def test_gradients_are_followed_in_both_halves(project):
    own = {"first": "sums", "second": "quiz"}
    settings = {"algorithm": "GradientSearch", "groups": "module", "search": {}}
    change_settings(project, regmean=own, keep_experts=True, **settings)
    assert merge(project) == 0
    moved = [[], [], [], []]
    for record in history(project / "out"):
        quarter = len(record["coefficients"]) // 4
        for number, values in enumerate(moved):
            values.append(record["coefficients"][number * quarter : (number + 1) * quarter])
    for start, values in zip((0.0, 0.0, 1.0, 1.0), moved, strict=True):
        assert values[0] == [start] * len(values[0])
        assert values[-1] != values[0]


def test_a_front_is_searched_in_both_halves(project):
    own = {"first": "sums", "second": "quiz"}
    pareto = {"objective": "pareto", "algorithm": "NSGA2", "search": {}, "pop_size": 8}
    change_settings(project, regmean=own, keep_experts=True, **pareto)
    assert merge(project, "budget=16") == 0
    out = project / "out"
    first = history(out)[0]
    assert first["coefficients"] == pytest.approx([0.0, 0.0, 1.0, 1.0])
    assert rows_of(out)["RegMean"]["dev"] == pytest.approx(first["tasks"])


@pytest.mark.parametrize(
    "regmean, words",
    [
        (True, "expected for expert 'first' some of the tasks sums, quiz, found"),
        ("sums", "expected true, weights, prompts, or a table"),
        ({"first": "sums"}, "expert 'second' was made for, found none"),
        ({"first": [["sums"]], "second": "quiz"}, "expected for expert 'first' some of the tasks"),
        ({"first": "sums", "second": []}, "expected for expert 'second' some of the tasks"),
    ],
)
def test_settings_that_name_no_task_for_an_expert_end_in_a_sentence(
    project, capsys, regmean, words
):
    change_settings(project, regmean=regmean)
    assert merge(project) == 2
    assert words in capsys.readouterr().err


def test_experts_are_kept_beside_regressed_ones_alone(project, capsys):
    change_settings(project, keep_experts=True)
    assert merge(project) == 2
    assert "keep_experts: expected false without regmean, found true" in capsys.readouterr().err
