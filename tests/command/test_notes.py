"""What a run tells about its parts: in the log, in inputs.json, result.json and the report."""

import json
import logging

import pytest
import torch
from builders import change_settings, merge
from harness_tasks import write_rows, write_task

from evox_evogm.algorithms.surrogate_evogm import SurrogateEvoGM
from evox_evogm.command.messages import _loggers_of_notes
from evox_evogm.command.notes import evaluations_before_groups, notes_of_groups
from evox_evogm.command.task_settings import parse_task
from evox_evogm.command.tasks import note_too_few, read_tasks
from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.tasks.task import Example, Task

TOO_FEW = "task 'quiz': expected 50 test examples, found 6, used all"


@pytest.fixture
def small(project):
    """A project with a budget of one population, whose quiz wants more examples than it has."""
    tasks = [{"swarm_eval": "quiz.json", "metric": "gold_log_probability", "dev": 4, "test": 50}]
    change_settings(project, budget=4, tasks=tasks)
    return project


def test_fewer_examples_than_the_settings_want_are_told(small, capsys):
    assert merge(small) == 0
    assert capsys.readouterr().out.count(f"note: {TOO_FEW}\n") == 1
    for name in ("inputs.json", "result.json"):
        assert json.loads((small / "out" / name).read_text())["notes"][0] == TOO_FEW
    report = (small / "out" / "report.md").read_text()
    assert "## Notes\n\n- task 'quiz': expected 50 test examples, found 6, used all\n" in report


@pytest.mark.parametrize(("wanted", "count"), [(None, 0), (1, 0), (2, 0), (3, 1)])
def test_as_many_examples_as_wanted_need_no_note(wanted, count):
    examples = (Example("0", "1 + 1", "2"), Example("1", "2 + 2", "4"))
    task = Task("sums", "1", "exact_match", examples)
    assert len(note_too_few(task, "dev", wanted)) == count


@pytest.mark.parametrize(("pop_size", "first"), [(3, 9), (4, 8), (8, 8), (5, 10)])
def test_a_search_whose_last_population_goes_past_the_first_part_is_told(pop_size, first):
    """Two experts in two groups: the first 8 points, and all of their last population."""
    box = torch.ones(4)
    algorithm = SurrogateEvoGM(pop_size, -box, box, blocks=2)
    assert evaluations_before_groups(algorithm) == first
    points = [[0.5, 0.5, 0.1 * number, 0.1 * number] for number in range(first)]
    said = [
        f"all {first} merges had one coefficient per expert: groups get their own after {first} "
        "evaluations"
    ]
    assert notes_of_groups(algorithm, points) == said
    assert notes_of_groups(algorithm, [*points, [0.5, 0.4, 0.1, 0.1]]) == []
    assert notes_of_groups(SurrogateEvoGM(pop_size, -box, box), points) == []  # without groups


def test_warnings_that_are_notes_come_from_loggers_of_the_package():
    for name in _loggers_of_notes():
        assert name in logging.root.manager.loggerDict and name.startswith("evox_evogm.problems.")


@pytest.mark.lengthy  # lm-eval takes seconds to import
def test_documents_of_dev_that_are_left_for_test_are_told(tmp_path):
    (tmp_path / "tasks").mkdir()
    write_rows(tmp_path / "tasks" / "validation.jsonl", 5)
    write_rows(tmp_path / "tasks" / "test.jsonl", 2, start=3)
    write_task(tmp_path / "tasks", "choices", "choices")
    entry = parse_task({"lm_eval": "choices", "include_path": "tasks"})
    expected = "found 2 documents that stand in dev and in test, used them only in test"
    assert read_tasks([entry], tmp_path).notes == [f"task 'choices': {expected}"]


def test_the_notes_of_a_problem_are_shown_on_one_line_without_control_characters(
    small, capsys, monkeypatch
):
    make = LoRAMergeProblem.__init__

    def noting(self, *rest, **named):
        make(self, *rest, **named)
        self.notes = ["no cache:\nit\x1b[31m differs"]

    monkeypatch.setattr(LoRAMergeProblem, "__init__", noting)
    assert merge(small) == 0
    assert "note: no cache: it [31m differs\n" in capsys.readouterr().out
    inputs = json.loads((small / "out" / "inputs.json").read_text())
    assert inputs["notes"][:2] == [TOO_FEW, "no cache: it [31m differs"]


@pytest.mark.parametrize("same_base", [False, True])
def test_names_of_different_bases_are_told_everywhere_and_end_no_run(
    small, capsys, edit_config, same_base
):
    change_settings(small, same_base=same_base)
    for expert, base in (("first", "org/one"), ("second", "org/two")):
        edit_config(small / "experts" / expert, base_model_name_or_path=base)
    assert merge(small) == 0
    told = "org/one (expert 'first') and org/two (expert 'second') are probably different models"
    inputs, result = (
        json.loads((small / "out" / name).read_text())["notes"]
        for name in ("inputs.json", "result.json")
    )
    for notes in (capsys.readouterr().out, " ".join(inputs), " ".join(result)):
        assert "org/one, org/two for one base model" in notes
        assert (told in notes) != same_base
    assert ("probably different models" in (small / "out/report.md").read_text()) != same_base
