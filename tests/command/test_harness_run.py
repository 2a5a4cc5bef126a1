"""Runs of the command on tasks of the LM Evaluation Harness."""

import json
import re
from pathlib import Path

import pytest
import yaml
from builders import change_settings, history, interrupt_searches, merge
from harness_tasks import write_rows, write_task

from evox_evogm.command.harness_check import notes_of_harness
from evox_evogm.command.task_settings import parse_task
from evox_evogm.command.tasks import read_task

pytestmark = [pytest.mark.language_model, pytest.mark.lengthy]
TASKS = [
    {"lm_eval": "choices", "metric": "acc_norm", "num_fewshot": 2, "test": 5},
    {"lm_eval": "rolling", "metric": "bits_per_byte", "name": "whole texts"},
    {"lm_eval": "lengths", "dev": 3},
]


@pytest.fixture
def harness_project(project):
    """The project with tasks of the harness in place of its own."""
    for kind in ("choices", "rolling", "lengths"):
        write_task(project / "my_tasks", kind, kind)
    tasks = [{**task, "include_path": "my_tasks"} for task in TASKS]
    change_settings(
        project, tasks=tasks, algorithm="SurrogateEvoGM", search=..., pop_size=..., budget=7
    )
    return project


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_run_goes_on_and_its_adapter_is_scored_by_the_harness(
    harness_project, monkeypatch, capsys
):
    assert merge(harness_project, out="whole") == 0
    with monkeypatch.context() as patch:
        interrupt_searches(patch, 1)
        assert merge(harness_project, out="parts") == 130
    assert merge(harness_project, out="parts") == 0
    assert history(harness_project / "parts") == history(harness_project / "whole")

    result = result_of(harness_project / "whole")
    version = result["versions"]["lm_eval"]
    inputs = json.loads((harness_project / "whole" / "inputs.json").read_text())
    assert inputs["made with"]["versions"]["lm_eval"] == version
    assert result["tasks"]["choices"]["version"].startswith(f"lm-eval {version}, version 1.0, ")
    assert result["tasks"]["lengths"]["dev"] == 3
    merged = next(row for row in result["scores"] if row["kind"] == "merge")
    names = ["choices", "whole texts", "lengths"]
    checked = [(entry["split"], entry["task"]) for entry in result["lm_eval"]]
    assert checked == [(split, name) for split in ("dev", "test") for name in names]
    for entry in result["lm_eval"]:
        assert entry["error"] is None and entry["agrees"]
        assert entry["run"] == merged[entry["split"]][entry["task"]]
        assert entry["lm_eval"] == pytest.approx(entry["run"], rel=1e-5)
    # Of a score of all documents together there is no standard error over examples.
    assert merged["errors"]["test"]["whole texts"] == "nan"
    report = (harness_project / "whole" / "report.md").read_text()
    assert "## By the LM Evaluation Harness itself" in report
    assert f"lm_eval {version}" in report
    capsys.readouterr()

    text = (harness_project / "my_tasks" / "choices.yaml").read_text()
    (harness_project / "my_tasks" / "choices.yaml").write_text(text.replace("Answer", "Reply"))
    assert merge(harness_project, out="whole") == 2
    assert "found task choices (dev) changed since" in capsys.readouterr().err


def test_racing_takes_scores_of_documents_and_refuses_those_of_all_together(
    harness_project, capsys
):
    tasks = yaml.safe_load((harness_project / "run.yaml").read_text())["tasks"]
    change_settings(harness_project, racing=True)
    assert merge(harness_project, out="refused") == 2
    expected = (
        "racing: expected tasks that are scored example by example, found 'whole texts' with the "
        "metric bits_per_byte of all examples together"
    )
    assert expected in capsys.readouterr().err
    change_settings(harness_project, tasks=[tasks[0], tasks[2]], budget=10)
    assert merge(harness_project, out="raced") == 0
    assert all(entry["agrees"] for entry in result_of(harness_project / "raced")["lm_eval"])


def test_gradients_are_followed(harness_project, capsys):
    tasks = yaml.safe_load((harness_project / "run.yaml").read_text())["tasks"]
    change = {"algorithm": "GradientSearch", "groups": "layer"}
    change_settings(harness_project, tasks=tasks[:1], budget=9, mode="auto", **change)
    assert merge(harness_project, out="gradients") == 0
    change_settings(harness_project, tasks=tasks[2:])
    assert merge(harness_project, out="refused") == 2
    expected = (
        "task 'lengths': expected a task with derivatives for gradients, found that its metric"
    )
    assert expected in capsys.readouterr().err


def test_a_folder_of_tasks_may_be_in_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    write_task(tmp_path / "home" / "my_tasks", "choices", "choices")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    dev, _ = read_task({"lm_eval": "choices", "include_path": "~/my_tasks"}, Path("/settings"))
    assert dev.name == "choices"


def test_what_the_harness_finds_otherwise_is_a_note():
    entry = {
        "task": "t",
        "split": "dev",
        "run": 0.5,
        "lm_eval": 0.25,
        "agrees": False,
        "error": None,
    }
    failed = {**entry, "error": "OutOfMemoryError: no"}
    assert notes_of_harness([entry, failed, {**entry, "agrees": True}]) == [
        "task 't' (dev): expected one score of the merge by both, the run has 0.5000, the harness "
        "0.2500",
        "task 't' (dev): the harness could not score the adapter: OutOfMemoryError: no",
    ]


@pytest.mark.parametrize(
    "entry, expected",
    [
        ({"match": "equal"}, "found the unknown setting 'match'"),
        ({"num_fewshots": 2}, "did you mean 'num_fewshot'?"),
        ({"num_fewshot": -1}, "expected num_fewshot to be a whole number, at least 0, found -1"),
        ({"include_path": 3}, "expected include_path to be a folder, found 3"),
        ({"json_lines": "x"}, "expected a table with one of reasoning_gym"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(entry, expected):
    with pytest.raises(ValueError) as raised:
        parse_task({"lm_eval": "arc_easy", **entry})
    assert expected in str(raised.value)


def test_an_unknown_metric_ends_the_command_before_the_base_loads(harness_project, capsys):
    tasks = [{"lm_eval": "choices", "include_path": "my_tasks", "metric": "f2"}]
    change_settings(harness_project, tasks=tasks)
    settings = yaml.safe_load((harness_project / "run.yaml").read_text())
    (harness_project / settings["base"] / "model.safetensors").write_bytes(b"not weights")
    assert merge(harness_project) == 2
    expected = "lm_eval task 'choices': metric: expected one of acc, acc_norm, acc_bytes"
    assert expected in capsys.readouterr().err


def test_the_example_of_the_readme_runs(project, monkeypatch):
    """Its paths of data files are those from where the command runs, as the harness takes them."""
    monkeypatch.chdir(project)
    readme = (Path(__file__).parents[2] / "problems" / "README.md").read_text()
    section = readme.split("## LM Evaluation Harness")[1].split("\n## ")[0]
    run, task = re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)
    (project / "my_tasks").mkdir()
    (project / "my_tasks" / "colours.yaml").write_text(task)
    write_rows(project / "my_tasks" / "validation.jsonl", 6)
    write_rows(project / "my_tasks" / "test.jsonl", 6, start=100)
    (project / "run.yaml").write_text(run + "\nbudget: 4\ndtype: float32\ndevice: cpu\n")
    assert merge(project) == 0
    (described,) = result_of(project / "out")["tasks"].values()
    assert (described["metric"], described["dev"], described["test"]) == ("acc_norm", 4, 6)


def test_a_trial_trains_on_answers_of_a_task_that_has_no_derivatives(harness_project):
    write_task(harness_project / "more_tasks", "answers", "answers", count=12)
    task = {"lm_eval": "answers", "include_path": "more_tasks", "filter": "first-letter"}
    trial = {"epochs": 1, "rates": [0.01], "start": "merge"}
    change_settings(harness_project, tasks=[task], trial=trial, contributions=False)
    assert merge(harness_project) in (0, 3)
    found = result_of(harness_project / "out")["trial"]
    assert [row["name"] for row in found["scores"]][1:] == ["average", "trained LoRA"]
    assert found["compared"]["adapters"] == 1 and found["compared"]["merges"] == 2
