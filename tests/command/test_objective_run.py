"""Runs for other objectives than the mean: weights, the worst task, constraints, and the front."""

import json
import re

import pytest
import torch
import yaml
from builders import change_settings, history, interrupt_searches, merge
from safetensors.torch import load_file

from evox_evogm.command import cli
from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.objective_remarks import remarks_on_objective
from evox_evogm.command.settings import parse_settings
from evox_evogm.command.settings_file import read_settings

TASKS = [{"json_lines": "a.jsonl", "test_file": "b.jsonl"}, {"swarm_eval": "quiz.json"}]


def read(out):
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "worse"}, "objective: expected one of mean, worst, harmonic, pareto"),
        ({"objective": "pareto", "algorithm": "EvoGM"}, "expected one of NSGA2, NSGA3"),
        ({"algorithm": "NSGA2"}, "objective: expected pareto with algorithm NSGA2"),
        ({"objective": "pareto", "tasks": TASKS[:1]}, "expected two tasks or more with pareto"),
        (
            {"objective": "worst", "tasks": [{**TASKS[0], "weight": 2}, TASKS[1]]},
            "weight: expected no weight with objective worst, which is the least score, found 2",
        ),
        ({"tasks": [{**TASKS[0], "weight": 0}]}, "expected weight to be a number above 0, found 0"),
        ({"tasks": [{**TASKS[0], "weight": True}]}, "weight to be a number above 0, found True"),
        (
            {"objective": "worst", "algorithm": "GradientSearch"},
            "weighted mean with GradientSearch",
        ),
        ({"objective": "harmonic", "racing": True}, "racing: expected false with weights"),
        ({"constraints": {"quiz": 0.1}}, "expected a table such as .*, found 0.1"),
        ({"constraints": {"quiz": {"loose": 0.1}}}, "did you mean 'lose'"),
        (
            {"constraints": {"quiz": {"against": "best"}}},
            "base, best_expert, average, found 'best'",
        ),
        (
            {"constraints": {"quiz": {"against": "base", "least": 0.5}}},
            "expected least, or against with lose, found least and against",
        ),
        (
            {"constraints": {"quiz": {"least": 0.5, "lose": 0.1}}},
            "expected least, or against with lose, found least and lose",
        ),
        ({"constraints": {"quiz": {"lose": "1%"}}}, "expected lose to be a number, found '1%'"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_settings({"base": "b", "experts": "e", "tasks": TASKS, **changes}, "run.yaml")


@pytest.mark.parametrize("count, words", [(1, "1 merge that"), (2, "2 merges that")])
def test_the_front_is_counted_in_words(count, words):
    remarks = remarks_on_objective({"objective": "pareto", "front": count * [{}]})
    assert remarks == [f"The front has {words} no other beats in every dev task."]


def test_pareto_has_an_algorithm_of_its_own():
    values = {"base": "b", "experts": "e", "tasks": TASKS, "objective": "pareto"}
    assert parse_settings(values, "run.yaml").algorithm == "NSGA2"


def test_weights_count_in_the_score_and_in_outcomes(project):
    settings, folder = read_settings(project / "run.yaml")
    tasks = yaml.safe_load((project / "run.yaml").read_text())["tasks"]
    tasks[0]["weight"] = 3
    change_settings(project, tasks=tasks, algorithm="SurrogateEvoGM", search=..., budget=4)
    change_settings(project, pop_size=3)
    settings, folder = read_settings(project / "run.yaml")
    with MergeRun(settings, folder, project / "out") as run:
        weights = run.algorithm.outcome_weights.tolist()
        assert weights == pytest.approx([3 / 16] * 4 + [1 / 16] * 4)
        run.search()
        for record in run.records:
            expected = (3 * record["tasks"]["sums"] + record["tasks"]["quiz"]) / 4
            assert record["score"] == pytest.approx(expected)


@pytest.fixture
def constrained(project):
    """A project for the worst task, of which one may not be lost."""
    constraints = {"sums": {"lose": 0.05}, "quiz": {"against": "best_expert"}}
    change_settings(project, objective="worst", constraints=constraints)
    return project


@pytest.mark.lengthy
def test_a_run_keeps_constraints_and_says_so(constrained, capsys):
    assert merge(constrained) == 0
    result = read(constrained / "out")
    rows = {row["name"]: row for row in result["scores"]}
    config = yaml.safe_load((constrained / "out" / "config.yaml").read_text())
    least = config["constraints"]["sums"]["least_on_dev"]
    assert least == pytest.approx(rows["base"]["dev"]["sums"] - 0.05)
    best_quiz = max(rows[name]["dev"]["quiz"] for name in ("first", "second"))
    assert config["constraints"]["quiz"]["least_on_dev"] == pytest.approx(best_quiz)
    for record in history(constrained / "out"):
        lacking = max(0, least - record["tasks"]["sums"])
        lacking += max(0, best_quiz - record["tasks"]["quiz"])
        worst = min(record["tasks"].values())
        expected = worst / (1 - worst) if worst < 0 else worst
        assert record["score"] == pytest.approx(-1 - lacking if lacking else expected)
    found = result["constraints"]["sums"]
    assert result["objective"] == "worst" and found["against"] == "base"
    merged = rows["EvoGM"]
    assert found["dev"]["kept"] == (merged["dev"]["sums"] >= least)
    on_test = rows["base"]["test"]["sums"] - 0.05
    assert found["test"]["least"] == pytest.approx(on_test)
    assert found["test"]["kept"] == (merged["test"]["sums"] >= on_test)
    said = (constrained / "out" / "report.md").read_text()
    on_both = [min(merged[split].values()) for split in ("dev", "test")]
    spread = r" ± [\d.]+"
    assert re.search(rf"\| EvoGM \| {on_both[0]:.3f}{spread} / {on_both[1]:.3f}{spread} \|", said)
    assert "Constraint on sums, at most 0.05 below the base" in said
    assert "Constraint on sums, at most 0.05 below the base" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_constraints(constrained, monkeypatch):
    assert merge(constrained, out="whole") == 0
    with monkeypatch.context() as patched:
        interrupt_searches(patched, steps=2)
        assert merge(constrained) == 130
    scored = []
    monkeypatch.setattr(
        "evox_evogm.problems.lora_merge.score_references", lambda *_: scored.append(1)
    )
    assert merge(constrained) == 0 and not scored
    assert history(constrained / "out") == history(constrained / "whole")
    change_settings(constrained, constraints={"sums": {"lose": 0.04}})
    assert merge(constrained) == 2


@pytest.fixture
def pareto(project):
    """A project with two tasks that no merge is best in both of."""
    for split in ("a", "b"):
        rows = [{"question": f"{split}{i}?", "answer": "yes" * (1 + i)} for i in range(4)]
        (project / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (sums, _) = yaml.safe_load((project / "run.yaml").read_text())["tasks"]
    words = {**TASKS[0], "metric": "gold_log_probability", "name": "words"}
    change_settings(project, objective="pareto", algorithm=..., search=..., budget=12)
    change_settings(project, tasks=[sums, words])
    return project


@pytest.mark.lengthy
def test_a_run_for_all_tasks_has_a_front_with_test_scores(pareto):
    assert merge(pareto) == 0
    result, records = read(pareto / "out"), history(pareto / "out")
    assert result["algorithm"] == "NSGA2" and len(records) == 12
    front = result["front"]
    assert len(front) > 1
    for entry in front:
        for record in records:
            pairs = [(record["tasks"][name], score) for name, score in entry["dev"].items()]
            assert not (all(a >= b for a, b in pairs) and any(a > b for a, b in pairs))
    means = [sum(entry["dev"].values()) / 2 for entry in front]
    assert means == sorted(means, reverse=True)
    assert means[0] == pytest.approx(max(record["score"] for record in records))
    assert [entry["exported"] for entry in front] == [True] + [False] * (len(front) - 1)
    assert front[0]["coefficients"] == result["coefficients"]
    assert front[0]["test"] == pytest.approx(result["scores"][-1]["test"], abs=1e-5)
    assert "## The front" in (pareto / "out" / "report.md").read_text()
    last = len(front) - 1
    assert cli.main(["export", str(pareto / "out"), "--front", str(last)]) == 0
    exported = load_file(
        pareto / "out" / f"export-adapter-front-{last}" / "adapter_model.safetensors"
    )
    own = load_file(pareto / "out" / "adapter" / "adapter_model.safetensors")
    assert any(not torch.equal(exported[name], own[name]) for name in exported)
    assert cli.main(["export", str(pareto / "out"), "--front", str(last + 1)]) == 2


@pytest.mark.slow
def test_an_interrupted_search_for_a_front_goes_on(pareto, monkeypatch):
    assert merge(pareto, out="whole") == 0
    with monkeypatch.context() as patched:
        interrupt_searches(patched, steps=2)
        assert merge(pareto) == 130
    assert merge(pareto) == 0
    assert history(pareto / "out") == history(pareto / "whole")
    assert read(pareto / "out")["front"] == read(pareto / "whole")["front"]
