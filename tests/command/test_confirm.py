"""`--confirm k`: the best merges are scored on further dev examples before one is chosen."""

import json
import math
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from builders import change_settings, history, merge

from evox_evogm.command import confirm as module
from evox_evogm.command.confirm import (
    Confirmed,
    choose,
    confirm_cells,
    describe,
    remarks_on_confirm,
)
from evox_evogm.command.further_examples import read_further
from evox_evogm.command.messages import print_confirmation
from evox_evogm.command.task_settings import parse_task
from evox_evogm.command.tasks import read_tasks
from evox_evogm.problems.scalarization import Constraint, Objective


def candidate(first, further, task="t"):
    return Confirmed(torch.zeros(2), {task: first}, {task: further})


LUCKY = candidate([1, 1, 1, 1], [0, 0, 0, 1])  # 1 on the first, .25 on further, .625 on all
STEADY = candidate([1, 1, 1, 0], [1, 1, 1, 0])  # .75, .75, .75


def test_the_merge_that_was_lucky_on_dev_is_not_taken():
    """By hand: the first is best on the four examples that were seen, the second over all eight."""
    assert LUCKY.first["t"] > STEADY.first["t"]
    assert choose([LUCKY, STEADY], Objective()) == 1
    assert LUCKY.score(Objective(), "pooled")[0] == 0.625
    assert STEADY.score(Objective(), "further")[0] == 0.75


def test_of_equals_the_recommended_one_stays():
    assert choose([STEADY, candidate([0, 1, 1, 1], [0, 1, 1, 1])], Objective()) == 0


def test_the_mean_is_over_examples_not_over_samples():
    few = candidate([1, 1, 1, 1, 1, 1], [0])  # 6 of 7
    many = candidate([1, 1, 1, 1, 1, 0], [1])  # 6 of 7
    assert choose([few, many], Objective()) == 0
    score, error = few.score(Objective(), "pooled")
    values = [1.0] * 6 + [0.0]
    assert score == pytest.approx(6 / 7)
    assert error == pytest.approx(statistics.stdev(values) / math.sqrt(7))


def test_a_task_without_further_examples_keeps_its_first_scores():
    objective = Objective(weights={"t": 3.0})
    merge = Confirmed(torch.zeros(1), {"t": [1, 0], "u": [1, 1, 0, 0]}, {"t": [1, 1]})
    assert merge.score(objective, "pooled")[0] == pytest.approx((3 * 0.75 + 0.5) / 4)
    assert merge.score(objective, "further")[0] == 1


def test_constraints_are_kept_over_all_examples():
    objective = Objective(constraints=(Constraint("t", least=0.7),))
    breaks = Confirmed(torch.zeros(1), {"t": [1, 0], "u": [1, 1]}, {"t": [0, 1], "u": [1, 1]})
    keeps = Confirmed(torch.zeros(1), {"t": [1, 0], "u": [0, 0]}, {"t": [1, 1], "u": [0, 0]})
    assert choose([breaks, keeps], objective) == 1


def table(candidates, chosen):
    objective = Objective()
    described = []
    for place, found in enumerate(candidates):
        described.append(describe(replace(found, recommended=place == 0), objective))
    return {"candidates": described, "chosen": chosen, "examples": {"t": 4}, "cost": 2.0}


def test_the_report_says_what_was_taken_and_why():
    found = table([LUCKY, STEADY], 1)
    first, second, third = remarks_on_confirm(found)
    assert "the 2 best merges were scored on 4 further dev examples, as much as 2 eval" in first
    assert second.startswith("Number 2 of them is taken in place of the recommended one: .750 ± ")
    assert ", the recommended one .625 ± " in second
    assert third.startswith("On further dev examples it scores .750 ± .250, on those of the search")
    assert remarks_on_confirm(table([STEADY, LUCKY], 0))[1].startswith(
        "The recommended merge stays"
    )
    cells = confirm_cells(found)
    assert [line[-1] for line in cells] == ["", "", "chosen"]
    assert cells[1][3] == ".625 ± .183"  # 5 of 8: sqrt(8/7 * 15/64 / 8)
    assert remarks_on_confirm(None) == [] and confirm_cells(None) == []


def test_without_the_recommended_merge_no_other_has_its_name():
    found = table([LUCKY, STEADY], 1)
    for candidate in found["candidates"]:
        del candidate["recommended"]  # results of earlier versions do not have it
    assert [line[0] for line in confirm_cells(found)[1:]] == ["recommended", "number 2"]
    failed = table([LUCKY, STEADY], 1)
    failed["candidates"][0]["recommended"] = False
    second = remarks_on_confirm(failed)[1]
    assert second.startswith("The recommended merge could not be scored on all of them. The best ")
    assert "other is taken: .750 ± " in second
    assert [line[0] for line in confirm_cells(failed)[1:]] == ["number 1", "number 2"]


@pytest.mark.parametrize("count, merges", [(1, "the recommended merge"), (2, "the best 2 merges")])
def test_what_is_announced_is_what_there_is_to_score(capsys, count, merges):
    """A front may have fewer merges than are wanted. By hand: 6 of 4 examples, for each merge."""
    further, dev = ([SimpleNamespace(examples=size * [None])] for size in (6, 4))
    settings = SimpleNamespace(confirm=5)
    run = SimpleNamespace(further=further, problem=SimpleNamespace(tasks=dev), settings=settings)
    print_confirmation(run, count)
    cost = {1: "1.5", 2: "3"}[count]
    expected = f"scoring {merges} on 6 further dev examples, as much as {cost} evaluations ..."
    assert capsys.readouterr().out.strip() == expected


def test_a_recommended_merge_that_fails_on_further_examples_is_not_named(monkeypatch, tmp_path):
    points = torch.tensor([[0.0], [1.0]])
    monkeypatch.setattr(module, "score_on", lambda *_: {(1.0,): {"t": [1.0]}})
    monkeypatch.setattr(module, "known_examples", lambda *_: {"t": [0.0]})
    monkeypatch.setattr(module, "cost_of_confirmation", lambda *_: 1.0)
    problem = SimpleNamespace(objective=Objective(), tasks=[])
    settings = SimpleNamespace(confirm=2, confirm_examples=None)
    run = SimpleNamespace(problem=problem, settings=settings, out=tmp_path)
    (only,) = module.confirm(run, points, [])["candidates"]
    assert only["point"] == [1.0] and not only["recommended"]


def test_further_examples_of_files_are_the_lines_after_those_of_dev(tmp_path):
    lines = [{"question": f"q{i}", "answer": "a"} for i in range(9)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, lines[:7])))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines[7:])))
    entry = {"json_lines": "dev.jsonl", "test_file": "test.jsonl", "dev": 4}
    entries = [parse_task(entry)]
    tasks = read_tasks(entries, tmp_path)
    (further,) = read_further(entries, tasks, tmp_path, None)
    assert [example.prompt for example in further.examples] == [
        f"Question: q{i}\nAnswer:" for i in (4, 5, 6)
    ]
    (fewer,) = read_further(entries, tasks, tmp_path, 2)
    assert fewer.examples == further.examples[:2]
    assert (further.name, further.metric) == ("dev", "exact_match")


def test_further_examples_of_reasoning_gym_are_new_questions(tmp_path):
    pytest.importorskip("reasoning_gym")
    entries = [parse_task({"reasoning_gym": "basic_arithmetic", "dev": 3, "test": 5})]
    tasks = read_tasks(entries, tmp_path)
    (further,) = read_further(entries, tasks, tmp_path, 4)
    prompts = [example.prompt for example in further.examples]
    used = [example.prompt for task in (*tasks.dev, *tasks.test) for example in task.examples]
    assert len(set(prompts)) == 4 and not set(prompts) & set(used)


def test_without_further_examples_it_is_refused(tmp_path):
    for split in ("dev", "test"):
        line = json.dumps({"question": split, "answer": "a"})
        (tmp_path / f"{split}.jsonl").write_text(line)
    entries = [parse_task({"json_lines": "dev.jsonl", "test_file": "test.jsonl"})]
    expected = "confirm: expected further dev examples .* found none; give a smaller dev"
    with pytest.raises(ValueError, match=expected):
        read_further(entries, read_tasks(entries, tmp_path), tmp_path, None)


@pytest.fixture
def run(project):
    """A project whose tasks have further dev examples: two lines and two questions."""
    settings = {"algorithm": "SurrogateEvoGM", "pop_size": 2, "budget": 7}
    sums = {"json_lines": "dev.jsonl", "test_file": "test.jsonl", "name": "sums", "dev": 2}
    quiz = {"swarm_eval": "quiz.json", "metric": "choice_likelihood", "dev": 4, "test": 6}
    sums["metric"] = "gold_log_probability"
    change_settings(project, **settings, search={}, tasks=[sums, quiz])
    return project


ASIDE = ("result_7.json", "result_7-2.json")  # before `--confirm`, and before the second one


def result_of(folder, name="result.json"):
    return json.loads((folder / name).read_text())


@pytest.mark.lengthy
def test_a_confirmed_run_goes_on_with_a_larger_budget(run, capsys):
    assert merge(run, "--confirm", "2") == 0
    assert merge(run, "--budget", "9") == 0
    assert "scoring the best 2 merges on 4 further dev examples" in capsys.readouterr().out
    result = result_of(run / "out")
    assert result["budget"] == 9 and result["confirm"]["examples"] == {"sums": 2, "quiz": 2}
    assert result_of(run / "out", "result_7.json")["confirm"]["k"] == 2


@pytest.mark.lengthy
def test_a_run_takes_the_merge_that_is_best_over_all_examples(run, capsys):
    assert merge(run, "--confirm", "3") == 0
    shown = capsys.readouterr().out
    assert "scoring the best 3 merges on 4 further dev examples, as much as 2 evaluations" in shown
    result = result_of(run / "out")
    found = result["confirm"]
    assert found["k"] == 3 and found["examples"] == {"sums": 2, "quiz": 2} and found["cost"] == 2
    candidates = found["candidates"]
    assert len({tuple(candidate["point"]) for candidate in candidates}) == 3
    pooled = [candidate["pooled"]["score"] for candidate in candidates]
    assert found["chosen"] == pooled.index(max(pooled))
    assert list(result["coefficients"].values()) == candidates[found["chosen"]]["point"]
    assert "further dev examples" in (run / "out" / "report.md").read_text()
    assert "further dev examples" in (run / "out" / "report.html").read_text()
    for candidate in candidates:  # by hand: two of four examples of sums are further ones
        first, more = candidate["first"]["tasks"], candidate["further"]["tasks"]
        both = candidate["pooled"]["tasks"]
        assert both["sums"] == pytest.approx((2 * first["sums"] + 2 * more["sums"]) / 4)
        assert both["quiz"] == pytest.approx((4 * first["quiz"] + 2 * more["quiz"]) / 6)


@pytest.mark.slow
def test_a_finished_run_can_be_confirmed_and_nothing_is_computed_twice(run, capsys, monkeypatch):
    from evox_evogm.command import confirm

    scored = []
    score_models = confirm.score_models

    def noted(problem, population, tasks):
        scored.append(len(population))
        return score_models(problem, population, tasks)

    monkeypatch.setattr(confirm, "score_models", noted)
    assert merge(run) == 0
    before = history(run / "out")
    assert scored == [] and result_of(run / "out")["confirm"] is None
    assert merge(run, "--confirm", "2") == 0
    assert history(run / "out") == before  # no evaluation was made again
    assert scored == [2]
    (run / "out" / "result.json").unlink()  # as if it had been killed before its end
    assert merge(run) == 0
    assert scored == [2] and result_of(run / "out")["confirm"]["k"] == 2
    assert merge(run, "--confirm", "3") == 0
    assert scored == [2, 1]
    results = [result_of(run / "out", name)["confirm"] for name in ASIDE]
    assert results[0] is None and results[1]["k"] == 2
    capsys.readouterr()
    assert merge(run) == 0
    assert "this run is finished" in capsys.readouterr().out
