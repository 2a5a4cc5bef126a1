"""A run in which all models score alike says so, and no other run does."""

import json
from dataclasses import replace

import pytest
import torch
from builders import change_settings, merge

from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.no_information import common_score, flat_tasks
from evox_evogm.command.notes import notes_of_level_rows
from evox_evogm.command.scores import ScoreRow
from evox_evogm.command.tasks import RunTasks
from evox_evogm.problems.population_scorer import PopulationScorer
from evox_evogm.problems.tasks.task import Example, Task

ALL_ZERO = {
    "algorithm": "SurrogateEvoGM",
    "search": {},
    "pop_size": 2,
    "budget": 4,
}


@pytest.fixture
def rationales(project):
    """A project whose targets carry their rationale: no answer of 16 tokens can equal one."""
    for split, start in (("dev", 0), ("test", 10)):
        rows = []
        for number in range(start, start + 4):
            answer = f"She has {number}+{number} = {2 * number}.\n#### {2 * number}"
            rows.append({"question": f"{number} clips and {number} more?", "answer": answer})
        (project / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = [{"json_lines": "dev.jsonl", "test_file": "test.jsonl", "name": "clips"}]
    change_settings(project, tasks=tasks, **ALL_ZERO)
    return project


def test_a_run_in_which_every_score_is_0_says_why_and_shows_a_prompt_and_an_output(
    rationales, capsys
):
    assert merge(rationales) == 3
    printed = capsys.readouterr()
    assert printed.err == (
        "evogm: scores: expected differences between base, experts and merges, "
        "found every score 0; the search learned nothing\n"
    )
    after_the_table = printed.out.split("SurrogateEvoGM  ", 1)[1]
    for words in ("not parsed", "chat prompts", "carry their rationale"):
        assert words in after_the_table
    assert "    Question: 0 clips and 0 more?\n    Answer:\n" in after_the_table
    assert "    She has 0+0 = 0.\n    #### 0\n" in after_the_table
    found = json.loads((rationales / "out" / "result.json").read_text())["no_information"]
    assert found["task"] == "clips" and found["prompt"] == "Question: 0 clips and 0 more?\nAnswer:"
    report = (rationales / "out" / "report.md").read_text()
    assert "## No information" in report and "    Question: 0 clips and 0 more?\n" in report


def test_the_output_is_what_the_base_writes(rationales, tokenizer, model):
    assert merge(rationales) == 3
    found = json.loads((rationales / "out" / "result.json").read_text())["no_information"]
    tokens = tokenizer(found["prompt"])["input_ids"]
    with torch.no_grad():
        for _ in range(16):
            token = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            tokens.append(token)
    written = tokens[len(tokenizer(found["prompt"])["input_ids"]) :]
    assert found["output"] == tokenizer.decode(written, skip_special_tokens=True)


def test_a_finished_run_without_information_says_so_again(rationales, capsys):
    assert merge(rationales) == 3
    capsys.readouterr()
    assert merge(rationales) == 3
    printed = capsys.readouterr()
    assert "this run is finished" in printed.out and "This is usually why:" in printed.out
    assert "the search learned nothing" in printed.err


def test_scores_that_are_all_alike_but_not_0_are_told_too(project, capsys, monkeypatch):
    score = PopulationScorer.score

    def alike(self, pop, tasks):
        found = score(self, pop, tasks)
        for scores in found.scores.values():
            scores.fill_(0.25)
        return found

    change_settings(project, budget=4)
    monkeypatch.setattr(PopulationScorer, "score", alike)
    assert merge(project) == 3
    assert "found equal scores in every task; the search learned" in capsys.readouterr().err


def test_one_task_that_says_nothing_is_noted_and_the_run_is_a_success(project, capsys, monkeypatch):
    score = PopulationScorer.score

    def quiz_alike(self, pop, tasks):
        found = score(self, pop, tasks)
        if "quiz" in found.scores:
            found.scores["quiz"].fill_(0.25)
        return found

    change_settings(project, budget=4)
    monkeypatch.setattr(PopulationScorer, "score", quiz_alike)
    assert merge(project) == 0
    note = (
        "task 'quiz': base, experts and merges all score 0.250 on dev; the search learned nothing"
    )
    assert f"note: {note}" in capsys.readouterr().out
    assert "## Notes" in (project / "out" / "report.md").read_text()


TASK = Task("sums", "1", "exact_match", (Example("0", "1 + 1", "2"),))
TASKS = RunTasks([TASK], [TASK])


def rows_of(dev, test):
    """A row for each pair of a dev and a test score."""
    rows = []
    for dev_score, test_score in zip(dev, test, strict=True):
        rows.append(ScoreRow("x", "expert", {"sums": dev_score}, {"sums": test_score}))
    return rows


def record(score, **more):
    return {"score": score, "coefficients": [score], "tasks": {"sums": score}, **more}


@pytest.mark.parametrize(
    ("dev", "test", "evaluated", "is_flat"),
    [
        ([0.0, 0.0], [0.0, 0.0], [0.0], True),
        ([0.5, 0.5], [0.25, 0.25], [0.5], True),
        ([0.5, 0.5 + 1e-8], [0.25, 0.25], [], True),  # rounding
        ([0.5, 0.5], [0.25, 0.5], [0.5], False),  # differs on test alone
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.25], False),  # a merge on the way was better
        ([0.0, 0.01], [0.0, 0.0], [0.0], False),
        ([0.0, float("nan")], [0.0, 0.0], [], True),  # a model without scores says nothing
        ([float("nan")], [float("nan")], [], False),
    ],
)
def test_a_task_says_nothing_only_where_no_score_differs_anywhere(dev, test, evaluated, is_flat):
    records = [record(score) for score in evaluated]
    assert bool(flat_tasks(rows_of(dev, test), records, TASKS)) == is_flat


@pytest.mark.parametrize(
    ("dev", "test", "told"),
    [
        ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25], ".500 on dev and .250 on test"),
        ([0.5, 0.5, 0.5], [0.25, 0.25, 0.5], ".500 on dev"),
        ([0.5, 0.75, 0.5], [1.0, 1.0, 1.0], "1.000 on test"),
        ([0.5, 0.5001, float("nan")], [0.25, 0.5, float("nan")], ".500 on dev"),  # as shown
        ([0.5, float("nan")], [0.5, float("nan")], None),  # one row is not level with another
        ([0.5, 0.502], [0.25, 0.5], None),
    ],
)
def test_a_task_in_which_the_table_shows_one_score_is_noted(dev, test, told):
    alike = f"task 'sums': base, experts and merge all score {told} in the table"
    expected = [f"{alike}, which tells none from another"] if told else []
    assert notes_of_level_rows(rows_of(dev, test), [TASK]) == expected


@pytest.mark.lengthy
def test_a_task_whose_rows_are_level_is_noted_though_merges_of_the_search_differ(
    project, monkeypatch
):
    score_rows = MergeRun.score_rows

    def level(self, best):
        rows = []
        for row in score_rows(self, best):
            changed = {split: {**getattr(row, split), "quiz": 0.25} for split in ("dev", "test")}
            rows.append(replace(row, **changed))
        return rows

    change_settings(project, budget=4)
    monkeypatch.setattr(MergeRun, "score_rows", level)
    assert merge(project) == 0
    notes = json.loads((project / "out" / "result.json").read_text())["notes"]
    told = ".250 on dev and .250 on test in the table, which tells none from another"
    assert f"task 'quiz': base, experts and merge all score {told}" in notes


def test_failed_and_pruned_merges_say_nothing():
    failed = {"score": None, "coefficients": [1.0], "tasks": {}}
    pruned = record(0.5, estimate=0.1)
    assert flat_tasks(rows_of([0.0], [0.0]), [failed, pruned], TASKS)


def test_the_score_that_all_have():
    assert common_score([0.25, 0.25]) == 0.25
    assert common_score([0.25, 0.26]) is None
    assert common_score([]) is None


@pytest.mark.parametrize(
    ("rows", "evaluated", "is_flat"),
    [
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 0.0], [0.0, 0.5], False),
        ([0.5, 0.5], [0.5, 0.0], False),  # parts of examples of which half are always right
    ],
)
def test_scores_on_minibatches_show_whether_a_task_says_something(rows, evaluated, is_flat):
    records = [record(score, estimate=score) for score in evaluated]
    found = flat_tasks(rows_of(rows, [0.0, 0.0]), records, TASKS, on_minibatches=True)
    assert bool(found) == is_flat
