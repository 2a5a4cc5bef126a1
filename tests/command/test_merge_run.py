"""Whole runs through the command, on a tiny model laid out as a user's folder would be."""

import json

import pytest
import torch
import yaml
from builders import build_model, change_settings, history, merge

from evox_evogm.command import cli
from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.adapters.merging import merged, stack_experts
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.resume.resumable_search import ResumableSearch


@pytest.fixture
def finished(project, capsys):
    assert merge(project) == 0
    return project / "out", capsys.readouterr().out


def test_the_run_folder_holds_settings_history_result_report_and_adapter(finished):
    out, _ = finished
    assert sorted(p.name for p in out.iterdir()) == [
        "adapter",
        "config.yaml",
        "history.jsonl",
        "inputs.json",
        "report.md",
        "result.json",
        "state.safetensors",
    ]
    assert yaml.safe_load((out / "config.yaml").read_text())["seed"] == 3


def test_the_history_has_every_evaluation_and_the_result_is_its_best(finished):
    out, _ = finished
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [row["evaluation"] for row in rows] == list(
        range(16)
    )  # 17 rounded down to whole populations
    assert [(row["round"], row["iteration"]) for row in rows[::4]] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert [row["coefficients"] for row in rows[:3]] == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    for row in rows:
        assert row["score"] == pytest.approx((row["tasks"]["sums"] + row["tasks"]["quiz"]) / 2)
    best = max(rows, key=lambda row: row["score"])
    result = json.loads((out / "result.json").read_text())
    assert result["coefficients"] == dict(
        zip(["first", "second"], best["coefficients"], strict=True)
    )
    assert result["evaluations"] == 16 and result["seed"] == 3
    assert result["scores"][-1]["dev"] == pytest.approx(best["tasks"])


def test_the_table_scores_base_experts_average_and_result_as_the_problem_does(finished, project):
    out, shown = finished
    rows = {row["name"]: row for row in json.loads((out / "result.json").read_text())["scores"]}
    assert list(rows) == ["base", "first", "second", "average", "EvoGM"]
    for name in rows:
        assert any(line.startswith(name) for line in shown.splitlines())
    from evox_evogm.command.merge_run import read_task

    pairs = [
        read_task(entry, project)
        for entry in yaml.safe_load((project / "run.yaml").read_text())["tasks"]
    ]
    folders = [project / "experts" / name for name in ("first", "second")]
    problem = LoRAMergeProblem(
        project / "base", folders, [dev for dev, _ in pairs], dtype=torch.float32, mode="unmerged"
    )
    for name, coefficients in (
        ("base", [0.0, 0.0]),
        ("second", [0.0, 1.0]),
        ("average", [0.5, 0.5]),
    ):
        for split, tasks in (
            ("dev", [dev for dev, _ in pairs]),
            ("test", [test for _, test in pairs]),
        ):
            scores = problem.score_tasks(torch.tensor(coefficients), tasks)
            assert rows[name][split] == pytest.approx(
                {task: float(s.mean()) for task, s in scores.items()}, abs=1e-6
            )
    assert rows["base"]["test"].keys() == {"sums", "quiz"}


def test_seconds_are_those_of_all_evaluations_whichever_process_made_them(finished):
    out, _ = finished
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert json.loads((out / "result.json").read_text())["seconds"] == round(
        sum(row["seconds"] for row in rows), 1
    )


def test_inputs_hold_digests_of_all_that_was_read_and_what_it_was_read_with(finished):
    out, _ = finished
    inputs, result = (
        json.loads((out / name).read_text()) for name in ("inputs.json", "result.json")
    )
    tasks = [f"task {name} ({split})" for split in ("dev", "test") for name in ("sums", "quiz")]
    assert list(inputs["sha256"]) == ["base", "tokenizer", *tasks, "expert first", "expert second"]
    assert inputs["sha256"]["base"] == result["base_sha256"]
    assert inputs["made with"] == {name: result[name] for name in ("device", "threads", "versions")}


@torch.no_grad()
def test_the_adapter_is_the_best_merge_for_plain_peft(finished, project):
    from peft import PeftModel

    out, _ = finished
    result = json.loads((out / "result.json").read_text())
    assert result["adapter"]["largest_relative_difference"] < 1e-6
    experts = [read_expert(project / "experts" / name) for name in ("first", "second")]
    model, tokens = build_model(), torch.arange(1, 13)[None]
    coefficients = torch.tensor(list(result["coefficients"].values()))
    with merged(model, stack_experts(experts, torch.float32, torch.device("cpu")), coefficients):
        expected = model(tokens).logits
    reloaded = PeftModel.from_pretrained(build_model(), out / "adapter")
    torch.testing.assert_close(reloaded(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_same_seed_writes_the_same_history_and_another_seed_another(finished, project):
    out, _ = finished
    assert merge(project, out="again") == 0
    assert merge(project, "--seed", "4", out="other") == 0
    first, again, other = (history(project / name) for name in ("out", "again", "other"))
    assert first == again != other


def test_options_of_the_command_replace_settings(project):
    assert merge(project, "--budget", "4", "--dtype", "bfloat16") == 0
    result = json.loads((project / "out" / "result.json").read_text())
    assert (result["evaluations"], result["dtype"]) == (4, "bfloat16")


def test_progress_tells_best_score_and_time_left(finished):
    _, shown = finished
    assert (
        "[  16/16] round 2, iteration 1: score" in shown
        and "best" in shown
        and "0 min 00 s left" in shown
    )


def test_experts_may_be_a_table_of_names(project):
    change_settings(project, experts={"one": "experts/first", "two": "experts/second"}, budget=4)
    assert merge(project) == 0
    assert list(json.loads((project / "out" / "result.json").read_text())["coefficients"]) == [
        "one",
        "two",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgett": 3}, "found the unknown setting 'budgett'; did you mean 'budget'?"),
        ({"search": {"epoch": 3}}, "search: found the unknown setting 'epoch'; did you mean 'epochs'?"),
        ({"search": {"clamp": True}}, "search: found the unknown setting 'clamp'"),
        ({"search": {"lr": -1}}, "lr: expected a number of at least 0, found -1"),
        ({"budget": 3}, "budget: expected at least one population, 4 evaluations, found 3"),
        ({"experts": "nowhere"}, "experts: expected adapter folders with adapter_config.json in"),
        ({"experts": ["experts/first", "base/first"]}, "experts: expected folders with different names"),
        ({"base": "nobody/nothing"}, "base: expected a transformers folder or hub id, found 'nobody/nothing'"),
        ({"device": "abacus"}, "device: expected one that torch can use here, found 'abacus'"),
        ({"tasks": [{"swarm_evil": "quiz.json"}]}, "tasks: expected a table with one of reasoning_gym, swarm_eval"),
        ({"tasks": [{"swarm_eval": "quiz.json", "ruel": "x"}]}, "found the unknown setting 'ruel'; did you mean 'rule'?"),
        ({"tasks": [{"swarm_eval": "quiz.json", "metric": "x"}]}, "task 'quiz': rule is one of"),
        ({"tasks": [{"swarm_eval": "none.json"}]}, "task 'none': expected a file, found none at"),
        ({"tasks": [{"json_lines": "dev.jsonl"}]}, "task 'dev.jsonl': expected test_file beside json_lines"),
        ({"tasks": [{"json_lines": "dev.jsonl", "test_file": "dev.jsonl"}]}, "found 4 of 4 test questions in dev"),
        ({"tasks": [{"reasoning_gym": "syllogism", "test": 2}]}, "expected dev to be a number of examples"),
        ({"tasks": [{"reasoning_gym": "nonsense", "dev": 2, "test": 2}]}, "reasoning-gym task 'nonsense'"),
        ({"tasks": ...}, "expected the setting 'tasks', found none"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence_and_status_2(project, capsys, changes, message):
    change_settings(project, **changes)
    assert merge(project) == 2
    error = capsys.readouterr().err
    assert error.startswith("evogm: ") and error.count("\n") == 1 and message in error
    assert not (project / "out").exists()


def test_a_run_folder_with_files_in_it_is_not_touched(project, capsys):
    (project / "out").mkdir()
    (project / "out" / "thesis.txt").write_text("mine")
    assert merge(project) == 2
    assert "out: expected a new or empty folder" in capsys.readouterr().err
    assert [p.name for p in (project / "out").iterdir()] == ["thesis.txt"]


def test_debug_shows_the_traceback(project):
    with pytest.raises(ValueError, match="expected a YAML file, found none"):
        cli.main(["merge", str(project / "none.yaml"), "--out", str(project / "out"), "--debug"])


def test_a_screened_search_goes_on_as_one_in_one_piece(project, monkeypatch):
    search = {"proposal": "screened", "epochs": 2, "hidden_dims": [4]}
    change_settings(project, search=search, pop_size=3, budget=9, racing=True)
    assert merge(project, out="whole") == 0
    run = ResumableSearch.run
    monkeypatch.setattr(
        ResumableSearch,
        "run",
        lambda self, steps: run(self, 2) or (_ for _ in ()).throw(KeyboardInterrupt),
    )
    assert merge(project, out="cut") == 130
    monkeypatch.setattr(ResumableSearch, "run", run)
    assert merge(project, out="cut") == 0
    assert history(project / "cut") == history(project / "whole")
    rows = history(project / "cut")
    assert {name: len(values) for name, values in rows[0]["margins"].items()} == {
        "sums": 4,
        "quiz": 4,
    }
    results = [json.loads((project / out / "result.json").read_text()) for out in ("cut", "whole")]
    assert (
        results[0]["coefficients"] == results[1]["coefficients"]
        and results[0]["scores"] == results[1]["scores"]
    )


def test_merges_that_are_given_up_spend_the_share_that_was_asked(project, capsys):
    search = {"proposal": "screened", "epochs": 2, "hidden_dims": [4]}
    rows = [{"question": f"{i} + {i}", "answer": str(2 * i)} for i in range(20, 36)]
    (project / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = [
        {"json_lines": "many.jsonl", "test_file": "test.jsonl", "metric": "gold_log_probability"}
    ]
    change_settings(project, search=search, pop_size=6, budget=24, tasks=tasks, racing=True, seed=1)
    assert merge(project) == 0
    rows, result = (
        history(project / "out"),
        json.loads((project / "out" / "result.json").read_text()),
    )
    spent = [row.get("fraction_evaluated", 1.0) for row in rows]
    assert 24 - 6 < sum(spent) <= 24 < len(rows)
    assert result["full_evaluations"] == round(sum(spent), 2) and result["evaluations"] == len(rows)
    for row in rows:
        asked = sum(map(len, row["examples"].values()))
        assert row.get("fraction_evaluated", 1.0) == asked / 16
        assert ("estimate" in row) == (asked < 16) and row["score"] == row.get(
            "estimate", row["score"]
        )
    assert f"as much as {sum(spent):.1f} full ones" in (project / "out" / "report.md").read_text()
    best = max(rows, key=lambda row: row["score"])
    assert "estimate" not in best
    change_settings(project, racing=False)
    assert merge(project, out="all") == 0
    assert len(history(project / "all")) == 24
