"""A metric that a task cannot have is refused when settings are read, before a model is loaded."""

import json

import pytest

from evox_evogm.command.early_checks import check_early, first_has_choices
from evox_evogm.command.settings import parse_settings
from evox_evogm.command.task_settings import ALLOWED, METRICS_OF_CHOICES, parse_task
from evox_evogm.problems.tasks import spearman, task

GYM = {"reasoning_gym": "gcd", "dev": 2, "test": 2}
LINES = {"json_lines": "dev.jsonl", "test_file": "test.jsonl"}
CHOICES = {"question": "1 + 1?", "answer": "A", "choices": ["2", "3"]}
FREE = {"question": "1 + 1?", "answer": "2"}


def test_the_names_are_those_that_tasks_take():
    assert set(ALLOWED["metric"]) == {*task.METRIC_NAMES, spearman.METRIC}
    assert set(METRICS_OF_CHOICES) == set(task.METRICS_OF_CHOICES)
    assert ALLOWED["match"] == task.MATCHES
    assert ALLOWED["continuation"] == task.CONTINUATIONS
    assert ALLOWED["protocol"] == task.PROTOCOLS


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**LINES, "metric": "exact_mach"}, "found 'exact_mach'; did you mean 'exact_match'?"),
        ({**LINES, "match": "contain"}, "match: expected one of equal, contains, last_10_words"),
        ({**LINES, "continuation": "txt"}, "found 'txt'; did you mean 'text'?"),
        ({"swarm_eval": "a.json", "protocol": "publshed"}, "did you mean 'published'?"),
        ({**GYM, "metric": "abstain_qa"}, "spearman for examples without choices, found 'abst"),
        (
            {"swarm_eval": "a.json", "protocol": "published", "metric": "choice_likelihood"},
            "with protocol published, found 'choice_likelihood'",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_what_fits(entry, message):
    with pytest.raises(ValueError) as raised:
        parse_task(entry)
    assert message in str(raised.value)


def test_tasks_of_the_harness_have_metrics_of_their_own():
    assert parse_task({"lm_eval": "arc_easy", "metric": "acc_norm"}).metric == "acc_norm"


def settings(entry):
    return parse_settings({"base": "b", "experts": "owner/name", "tasks": [entry]}, "")


@pytest.mark.parametrize(
    ("metric", "row", "fits"),
    [
        ("choice_likelihood", CHOICES, True),
        ("choice_likelihood", FREE, False),
        ("abstain_qa", FREE, False),
        ("spearman", FREE, True),
        ("spearman", CHOICES, False),
        ("exact_match", CHOICES, True),
        ("gold_log_probability", FREE, True),
    ],
)
def test_a_metric_has_to_fit_the_first_example_of_a_file(tmp_path, metric, row, fits):
    for name in ("dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n" + json.dumps(row) + "\n")
    (tmp_path / "quiz.json").write_text(json.dumps({"dev": [row], "test": []}))
    for entry in ({**LINES, "name": "mine"}, {"swarm_eval": "quiz.json", "name": "mine"}):
        found = settings({**entry, "metric": metric})
        if fits:
            check_early(found, tmp_path)
            continue
        with pytest.raises(ValueError, match=f"^task 'mine': metric: .*choices, found '{metric}'"):
            check_early(found, tmp_path)


@pytest.mark.parametrize("text", ["", "no json", "[]", "3"])
def test_what_cannot_be_read_is_left_to_the_reader(tmp_path, text):
    (tmp_path / "dev").write_text(text)
    assert first_has_choices(tmp_path / "dev", lines=True) is None
    assert first_has_choices(tmp_path / "dev", lines=False) is None
    assert first_has_choices(tmp_path / "nowhere", lines=True) is None
