"""Runs whose score is a function of the user's own."""

import json

import pytest
import yaml
from builders import change_settings, history, interrupt_searches, merge

FUNCTIONS = """
import json
from evox_evogm.problems import for_population

PROMPTS = {"dev": ["1 + 1", "hello"], "test": ["2 + 2", "bye", "x"]}


def score(model, split):
    return model.log_probabilities(PROMPTS[split], ["yes"] * len(PROMPTS[split]))


@for_population
def together(merges, split):
    return merges.log_probabilities(PROMPTS[split], ["yes"] * len(PROMPTS[split]))


def sometimes(model):
    if model.coefficients[0] == 1:
        return json.loads("{")
    return 0.5 - abs(model.coefficients[0] - 0.3)


def text(model):
    return "good"


def same(model):
    return 0.25
"""


@pytest.fixture
def mine(project):
    """A function that has the project score merges by a function, and other tasks."""
    (project / "my_functions.py").write_text(FUNCTIONS)

    def use(*names, **changes):
        tasks = [{"fitness": f"my_functions:{name}"} for name in names]
        change_settings(project, tasks=tasks, budget=8, **changes)
        return project

    return use


@pytest.mark.lengthy
def test_a_run_scores_by_functions_and_other_tasks(mine):
    project = mine("score", "together")
    tasks = yaml.safe_load((project / "run.yaml").read_text())["tasks"]
    quiz = {"swarm_eval": "quiz.json", "metric": "choice_likelihood"}
    change_settings(project, tasks=[*tasks, quiz], algorithm="SurrogateEvoGM", mode="auto")
    change_settings(project, search={})
    assert merge(project) == 0
    records = history(project / "out")
    for record in records:
        alone, together = record["margins"]["score"], record["margins"]["together"]
        assert alone == pytest.approx(together, abs=1e-4) and len(alone) == 2
    result = json.loads((project / "out" / "result.json").read_text())
    assert [row["name"] for row in result["scores"]][:4] == ["base", "first", "second", "average"]
    for row in result["scores"]:
        assert row["test"]["score"] == pytest.approx(row["test"]["together"], abs=1e-4)
    assert result["tasks"]["score"]["dev"] == 2 and result["tasks"]["score"]["test"] == 3
    config = yaml.safe_load((project / "out" / "config.yaml").read_text())
    entry = {"fitness": "my_functions:score", "dev": 2, "test": 3, "margins": False}
    assert config["tasks"][0] == entry
    before = (project / "out" / "history.jsonl").read_bytes()
    assert merge(project) == 0  # finished: nothing is called again
    assert (project / "out" / "history.jsonl").read_bytes() == before


@pytest.mark.lengthy
def test_an_interrupted_run_goes_on_and_one_with_another_function_does_not(
    mine, monkeypatch, capsys
):
    project = mine("score")
    assert merge(project, out="whole") == 0
    with monkeypatch.context() as patched:
        interrupt_searches(patched, steps=1)
        assert merge(project) == 130
    (project / "my_functions.py").write_text(FUNCTIONS.replace("yes", "now"))
    assert merge(project) == 2
    assert "found task score (dev) changed since" in capsys.readouterr().err
    (project / "my_functions.py").write_text(FUNCTIONS)
    assert merge(project) == 0
    assert history(project / "out") == history(project / "whole")


def test_calls_that_fail_are_failed_merges_with_a_reason(mine, capsys):
    project = mine("sometimes")
    assert merge(project) == 0
    first, second = history(project / "out")[:2]
    assert first["score"] is None and "JSONDecodeError" in first["failure"]
    assert "my_functions.py, line" in first["failure"]
    assert second["score"] == pytest.approx(0.2)
    result = json.loads((project / "out" / "result.json").read_text())
    notes = " ".join(result["notes"])
    assert "first: could not be scored: FitnessFailed: task 'sometimes'" in notes
    assert "takes no argument split" in notes


def test_functions_that_score_all_alike_have_learned_nothing(mine):
    project = mine("same")
    assert merge(project) == 3
    result = json.loads((project / "out" / "result.json").read_text())
    assert "my_functions:same" in result["no_information"]["prompt"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"fitness": "my_functions:text"}, "expected a number, a list of numbers"),
        ({"fitness": "my_functions:scores"}, "did you mean 'score'"),
        ({"fitness": "other_functions:score"}, "No module named 'other_functions'"),
        ({"fitness": "my_functions:score", "dev": 2}, "dev and test, or neither, found dev alone"),
        ({"fitness": "my_functions:score", "metric": "x"}, "found the unknown setting 'metric'"),
        ({"fitness": "my_functions:score", "options": {"k": 1}}, "unexpected keyword argument 'k'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(mine, capsys, entry, message):
    project = mine()
    change_settings(project, tasks=[entry])
    assert merge(project) == 2
    said = capsys.readouterr().err.strip()
    assert message in said.splitlines()[-1]
    assert not (project / "out" / "history.jsonl").exists()
