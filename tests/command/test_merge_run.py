"""Whole runs through the command, on a tiny model laid out as a user's folder would be."""

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml
from builders import build_model, change_settings, history, interrupt_searches, merge

from evox_evogm.command import cli
from evox_evogm.command.experts import expert_folders
from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.scores import Candidate, label, score_rows
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.tasks import read_tasks
from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.adapters.stacked_modules import stack_experts


@pytest.fixture
def finished(project, capsys):
    assert merge(project) == 0
    return project / "out", capsys.readouterr().out


def test_the_run_folder_holds_settings_history_result_report_and_adapter(finished):
    out, _ = finished
    assert sorted(p.name for p in out.iterdir()) == [
        "adapter",
        "config.yaml",
        "figures",
        "history.jsonl",
        "inputs.json",
        "report.html",
        "report.md",
        "report_data.json",
        "result.json",
        "scores_by_example.json",
        "state.safetensors",
    ]
    assert yaml.safe_load((out / "config.yaml").read_text())["seed"] == 3


def test_the_history_has_every_evaluation_and_the_result_is_its_best(finished):
    out, _ = finished
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    # 17 rounded down to whole populations.
    assert [row["evaluation"] for row in rows] == list(range(16))
    places = [(row["step"], row["round"], row["iteration"]) for row in rows[::4]]
    assert places == [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)]
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
    result = json.loads((out / "result.json").read_text())
    rows = {row["name"]: row for row in result["scores"]}
    assert list(rows) == ["base", "first", "second", "average", "EvoGM"]
    for name in rows:
        assert any(line.startswith(name) for line in shown.splitlines())
    problem, tasks = problem_of(project)
    points = {"base": [0.0, 0.0], "first": [1.0, 0.0], "second": [0.0, 1.0], "average": [0.5, 0.5]}
    points["EvoGM"] = list(result["coefficients"].values())
    for name, coefficients in points.items():
        for split, task in tasks.by_split():
            scores = problem.score_tasks(torch.tensor(coefficients), [task])[task.name]
            assert rows[name][split][task.name] == pytest.approx(float(scores.mean()), abs=1e-5)
    assert rows["base"]["test"].keys() == {"sums", "quiz"}


def problem_of(project):
    """The problem of the project's settings, and its tasks."""
    settings, folder = read_settings(project / "run.yaml")
    tasks = read_tasks(settings.tasks, folder)
    experts = expert_folders(settings.experts, folder)
    base = project / "base"
    problem = LoRAMergeProblem(base, experts, tasks.dev, dtype=torch.float32, mode="unmerged")
    return problem, tasks


def test_the_table_scores_one_population_per_split_and_only_what_the_history_lacks(
    project, monkeypatch
):
    problem, tasks = problem_of(project)
    scored = []

    def score_together(pop, tasks=None):
        split = "dev" if tasks is None else "test"
        scored.append((split, pop.tolist()))
        return {"sums": pop.sum(1, keepdim=True), "quiz": torch.zeros(len(pop), 1)}

    monkeypatch.setattr(problem, "score_together", score_together)
    best = Candidate("best", torch.tensor([0.25, 0.5]))
    known = {"sums": 7.0, "quiz": 8.0}
    pruned = {"score": 1.0, "coefficients": [0.0, 1.0], "tasks": {}, "estimate": 1.0}
    failed = {"score": None, "coefficients": [1.0, 0.0], "tasks": {}}
    history = [failed, pruned, {"score": 7.5, "coefficients": [0.25, 0.5], "tasks": known}]
    rows = score_rows(problem, tasks, best, history)
    four = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    assert scored == [("dev", four), ("test", [*four, [0.25, 0.5]])]
    assert [row.name for row in rows] == ["base", "first", "second", "average", "best"]
    assert [row.test["sums"] for row in rows] == [0.0, 1.0, 1.0, 1.0, 0.75]
    assert [row.dev["sums"] for row in rows] == [0.0, 1.0, 1.0, 1.0, 7.0]


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
    best = r"best score -?\d\.\d{4} ± \d\.\d{3}"
    assert re.search(rf"^1 of 16 evaluations, {best}, \d+ min \d\d s left$", shown, re.M)
    assert re.search(rf"^16 of 16 evaluations, {best}, 0 min 00 s left$", shown, re.M)
    assert "round" not in shown and "iteration" not in shown and "\x1b" not in shown


def test_the_first_lines_count_experts_tasks_and_evaluations(project, capsys):
    task = {"json_lines": "dev.jsonl", "test_file": "test.jsonl", "name": "sums", "dev": 1}
    change_settings(project, tasks=[task], budget=4)
    merge(project)
    printed = capsys.readouterr().out
    assert "2 experts, 1 task with 1 dev example, 4 evaluations on cpu" in printed
    assert "EvoGM is the merge with the best observed dev score.\n" in printed


def test_experts_may_be_a_table_of_names(project):
    change_settings(project, experts={"one": "experts/first", "two": "experts/second"}, budget=4)
    assert merge(project) == 0
    assert list(json.loads((project / "out" / "result.json").read_text())["coefficients"]) == [
        "one",
        "two",
    ]


def test_a_run_folder_with_files_in_it_is_not_touched(project, capsys):
    (project / "out").mkdir()
    (project / "out" / "thesis.txt").write_text("mine")
    assert merge(project) == 2
    assert "out: expected a new or empty folder" in capsys.readouterr().err
    assert [p.name for p in (project / "out").iterdir()] == ["thesis.txt"]


def test_the_adapter_has_a_card_with_its_weights_and_scores(finished):
    out, _ = finished
    card = (out / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card and "EvoGM (evox-evogm" in card
    for name, value in json.loads((out / "result.json").read_text())["coefficients"].items():
        assert f"| {name} | {value:+.4f} |" in card
    scores = [line for line in card.splitlines() if line.startswith("| EvoGM | ")]
    assert scores and scores[0] in (out / "report.md").read_text()


def test_the_version_is_shown(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"evogm \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.lengthy
def test_the_help_says_the_exit_statuses_and_needs_no_transformers():
    command = (
        "import sys; from evox_evogm.command import cli; status = cli.main(['{}', '--help']); "
    )
    check = "assert status == 0 and 'transformers' not in sys.modules"
    for name in ("merge", "demo"):
        code = command.format(name) + check
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        text = " ".join(result.stdout.split())
        assert "--quick" not in text
        for meaning in (
            "0 when the run is finished, 2 for input that cannot be used",
            "1 if the search itself fails (memory or disk ran out, among others)",
            "3 if the run is finished but base, experts and merges all score alike",
            "4 if it is finished but its adapter cannot be used, 130 when interrupted",
        ):
            assert meaning in text


@pytest.mark.parametrize(
    "words", [["merge"], ["merge", "run.yaml", "--bad"], ["demo", "--budget", "x"], ["x"]]
)
def test_words_that_are_no_command_end_in_status_2(words, capsys):
    assert cli.main(words) == 2
    assert "Usage: evogm" in capsys.readouterr().err


def test_debug_shows_the_traceback(project):
    with pytest.raises(ValueError, match="expected a YAML file, found none"):
        cli.main(["merge", str(project / "none.yaml"), "--out", str(project / "out"), "--debug"])


SURROGATE = {"algorithm": "SurrogateEvoGM", "search": {}}


def test_a_search_with_a_surrogate_goes_on_as_one_in_one_piece(project, monkeypatch):
    change_settings(project, **SURROGATE, pop_size=3, budget=10, racing=True)
    assert merge(project, out="whole") == 0
    with monkeypatch.context() as first_process:
        interrupt_searches(first_process, steps=2)
        assert merge(project, out="cut") == 130
    assert merge(project, out="cut") == 0
    assert history(project / "cut") == history(project / "whole")
    rows = history(project / "cut")
    assert [row["step"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert not {"round", "iteration"} & rows[0].keys()
    assert {name: len(values) for name, values in rows[0]["margins"].items()} == {
        "sums": 4,
        "quiz": 4,
    }
    results = [json.loads((project / out / "result.json").read_text()) for out in ("cut", "whole")]
    assert results[0]["algorithm"] == results[0]["scores"][-1]["name"] == "SurrogateEvoGM"
    assert results[0]["coefficients"] == results[1]["coefficients"]
    assert results[0]["scores"] == results[1]["scores"]


def test_a_search_with_a_surrogate_evaluates_three_at_a_time_unless_the_settings_say_otherwise(
    project,
):
    change_settings(project, algorithm=..., search=SURROGATE["search"], pop_size=..., budget=7)
    assert merge(project) == 0
    # Two populations, and the recommended merge.
    assert [row["step"] for row in history(project / "out")] == [0, 0, 0, 1, 1, 1, 1]


def test_a_budget_of_one_population_leaves_no_evaluation_for_the_recommended_merge(project):
    change_settings(project, algorithm=..., search=SURROGATE["search"], pop_size=..., budget=3)
    assert merge(project) == 0
    rows = history(project / "out")
    assert [row["step"] for row in rows] == [0, 0, 0]
    result = json.loads((project / "out" / "result.json").read_text())
    assert list(result["coefficients"].values()) in [row["coefficients"] for row in rows]


def test_the_papers_method_evaluates_twice_as_many_as_there_are_experts(project):
    change_settings(project, pop_size=..., budget=8)
    assert merge(project) == 0
    assert [row["step"] for row in history(project / "out")] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_pruned_merge_spends_the_fraction_that_was_evaluated(project, capsys):
    rows = [{"question": f"{i} + {i}", "answer": str(2 * i)} for i in range(20, 36)]
    (project / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = [
        {"json_lines": "many.jsonl", "test_file": "test.jsonl", "metric": "gold_log_probability"}
    ]
    change_settings(project, **SURROGATE, pop_size=6, budget=25, tasks=tasks, racing=True, seed=6)
    assert merge(project) == 0
    rows = history(project / "out")
    result = json.loads((project / "out" / "result.json").read_text())
    spent = [row.get("cost", 1.0) for row in rows]
    assert 25 - 7 < sum(spent) <= 25 < len(rows)
    assert result["full_evaluations"] == round(sum(spent), 2) and result["evaluations"] == len(rows)
    for row in rows:
        evaluated = sum(len(scores) for scores in row["examples"].values())
        assert row.get("cost", 1.0) == evaluated / 16
        assert ("estimate" in row) == (evaluated < 16)
        assert row["score"] == row.get("estimate", row["score"])
    assert f"as much as {sum(spent):.1f} full ones" in (project / "out" / "report.md").read_text()
    best = max(rows, key=lambda row: row["score"])
    assert "estimate" not in best
    change_settings(project, racing=False)
    assert merge(project, out="all") == 0
    assert len(history(project / "all")) == 25


def test_the_process_holds_the_scores_by_example_once_and_the_history_all(project, monkeypatch):
    records = []
    finish = MergeRun.finish

    def watched(self, best, rows):
        records.extend(self.records)
        return finish(self, best, rows)

    change_settings(project, **SURROGATE, pop_size=3, budget=7)
    monkeypatch.setattr(MergeRun, "finish", watched)
    with monkeypatch.context() as first_process:
        interrupt_searches(first_process, steps=1)
        assert merge(project) == 130
    assert merge(project) == 0
    assert len(records) == len(history(project / "out")) >= 6
    for kept, written in zip(records, history(project / "out"), strict=True):
        assert written.keys() - kept.keys() == {"examples", "margins"}
        assert kept["coefficients"] == written["coefficients"]


NAMES = ["EvoGM", "RegMean", "SurrogateEvoGM", "average", "base", "expert", "expert base"]


def test_experts_with_the_names_of_other_rows_are_told_apart_everywhere(project, capsys):
    experts = {}
    for number, name in enumerate(NAMES):
        experts[name] = f"experts/{('first', 'second')[number % 2]}"
    change_settings(project, experts=experts, budget=4)
    assert merge(project) == 0
    rows = json.loads((project / "out" / "result.json").read_text())["scores"]
    found = [(row["kind"], row["name"]) for row in rows]
    assert found == [
        ("base", "base"),
        *[("expert", name) for name in NAMES],
        ("average", "average"),
        ("merge", "EvoGM"),
    ]
    shown = [f"expert {name}" for name in NAMES]
    printed = capsys.readouterr().out
    report = (project / "out" / "report.md").read_text()
    for name in ("base", *shown, "average", "EvoGM"):
        assert len(re.findall(rf"^{name}  ", printed, re.M)) == 1
        assert len(re.findall(rf"^\| {name} \| .* / ", report, re.M)) == 1


@pytest.mark.parametrize("name", [*NAMES, "expert  x", "base\x1b", " average "])
def test_no_expert_has_the_label_of_another_row(name):
    others = ["base", "average", "RegMean", "EvoGM", "SurrogateEvoGM"]
    assert label("expert", name) not in others
    assert [label("base", other) for other in others] == others


def test_other_experts_keep_their_names_in_the_table():
    assert label("expert", "maths") == "maths"
    assert label("expert", "experts of maths") == "experts of maths"


def test_experts_may_have_a_coefficient_in_each_group_of_modules(project):
    change_settings(project, groups="module", budget=6, pop_size=3)
    assert merge(project) == 0
    result = json.loads((project / "out" / "result.json").read_text())
    table = result["coefficients_by_group"]
    assert list(table) == list(result["coefficients"])
    for expert, row in table.items():
        values = [value for value in row.values() if value is not None]
        assert 1 < len(values) < len(row)  # each of the experts lacks modules of the other
        mean = sum(values) / len(values)
        assert result["coefficients"][expert] == pytest.approx(mean, abs=1e-6)
    groups = list(next(iter(table.values())))
    point = [row[group] for row in table.values() for group in groups]
    assert point in points_like(point, history(project / "out"))
    report = (project / "out" / "report.md").read_text()
    assert all(f"| {group} |" in report for group in groups)
    assert result["adapter"]["largest_relative_difference"] < 1e-5


def points_like(point, records):
    """The coefficients of all evaluations, without those that are None in a point."""
    found = []
    for record in records:
        known = zip(point, record["coefficients"], strict=True)
        found.append([None if value is None else other for value, other in known])
    return found


def test_gradients_reach_a_coefficient_for_every_channel(project):
    """The report has a row for each module."""
    settings = {"algorithm": "GradientSearch", "groups": "channel", "budget": 9, "pop_size": 1}
    change_settings(project, **settings, search={})
    assert merge(project) == 0
    out = project / "out"
    result = json.loads((out / "result.json").read_text())
    table = result["coefficients_by_group"]
    point = [value for row in table.values() for value in row.values()]
    assert None in point and len(set(point)) > 2 * len(table)
    groups = list(next(iter(table.values())))
    assert groups[0].endswith("_proj, channel 0") and groups[1] == groups[0][:-1] + "1"
    assert point in points_like(point, history(out))
    report = (out / "report.md").read_text()
    assert f"| {groups[0].split(',')[0]} |" in report and "channel 0 |" not in report
    assert "By group of modules, with the mean over its channels; the shade" in report
    page = (out / "report.html").read_text()
    assert "The search has no box." not in page and "box that was searched" not in page
    assert result["adapter"]["largest_relative_difference"] < 1e-5


def test_a_search_over_groups_begins_with_one_coefficient_per_expert(project):
    settings = {"algorithm": "SurrogateEvoGM", "groups": "layer", "budget": 7, "pop_size": 3}
    change_settings(project, **settings, search={})
    assert merge(project) == 0
    result = json.loads((project / "out" / "result.json").read_text())
    rows = [record["coefficients"] for record in history(project / "out")]
    groups = len(rows[0]) // 2
    assert groups > 1 and rows[0] == [0.5] * 2 * groups  # the average of two experts
    note = "merges had one coefficient per expert: groups get their own after 9 evaluations"
    assert any(note in found for found in result["notes"])
    for row in [*rows, *result["coefficients_by_group"].values()]:
        values = list(row.values()) if isinstance(row, dict) else row
        for start in range(0, len(values), groups):
            assert len(set(values[start : start + groups]) - {None}) == 1


def test_a_search_along_gradients_counts_three_evaluations_for_each(project, capsys):
    settings = {"algorithm": "GradientSearch", "groups": "layer", "budget": 11, "pop_size": 1}
    change_settings(project, **settings, search={})
    assert merge(project) == 0
    out = project / "out"
    result = json.loads((out / "result.json").read_text())
    records = history(out)
    assert len(records) == result["evaluations"] == 3 and result["full_evaluations"] == 9
    assert [record["cost"] for record in records] == [3, 3, 3]
    groups = len(next(iter(result["coefficients_by_group"].values())))
    assert len(records[0]["gradient"]) == 2 * groups
    assert records[0]["coefficients"] == [0.5] * 2 * groups  # the average of two experts
    assert "9 of 9 evaluations" in capsys.readouterr().out
    assert "which need not have the best observed dev score" in (out / "report.md").read_text()


def test_a_search_along_gradients_goes_on_where_it_was_interrupted(project, monkeypatch):
    settings = {"algorithm": "GradientSearch", "groups": "layer", "budget": 15, "pop_size": 2}
    change_settings(project, **settings, search={})
    assert merge(project, out="whole") == 0
    with monkeypatch.context() as patch:
        interrupt_searches(patch, 1)
        assert merge(project) == cli.INTERRUPTED
    assert merge(project) == 0
    assert history(project / "out") == history(project / "whole")
    results = [json.loads((project / out / "result.json").read_text()) for out in ("out", "whole")]
    assert results[0]["coefficients_by_group"] == results[1]["coefficients_by_group"]
