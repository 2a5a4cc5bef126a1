"""The protocol and the domain of a task: in the settings, in digests, and in the report."""

import json
import math

import pytest
from builders import change_settings, merge

from evox_evogm.command.domains import describe_domains, domain_cells, harmonic_mean
from evox_evogm.command.run_inputs import task_content
from evox_evogm.command.scores import ScoreRow
from evox_evogm.command.task_settings import parse_task
from evox_evogm.command.tasks import read_task, read_tasks
from evox_evogm.problems.tasks.task import Example, Task

CHOICES = {"A": "yes", "B": "no"}


@pytest.fixture
def folder(tmp_path):
    """A folder with two small sets."""
    for name in ("medqa", "medmcqa"):
        splits = {}
        for split in ("dev", "test"):
            row = {"question": f"{name} {split}?", "choices": CHOICES, "answer": "B"}
            splits[split] = [row]
        (tmp_path / f"{name}.json").write_text(json.dumps(splits))
    return tmp_path


def test_a_task_has_the_protocol_of_its_entry_and_ours_without_one(folder):
    for entry, protocol in (({}, "ours"), ({"protocol": "ours"}, "ours")):
        dev, test = read_task({"swarm_eval": "medqa.json", **entry}, folder)
        assert dev.protocol == test.protocol == protocol
    dev, _ = read_task({"swarm_eval": "medqa.json", "protocol": "published"}, folder)
    assert (dev.protocol, dev.max_new_tokens) == ("published", 10)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"swarm_eval": "medqa.json", "protocol": "publsihed"},
            "task 'medqa.json': protocol: expected one of ours, published, found 'publsihed'",
        ),
        (
            {"swarm_eval": "medqa.json", "protocol": 1},
            "task 'medqa.json': expected protocol to be a text, found 1",
        ),
        (
            {"json_lines": "a.jsonl", "test_file": "b.jsonl", "protocol": "published"},
            "task 'a.jsonl': found the unknown setting 'protocol'",
        ),
        (
            {"swarm_eval": "medqa.json", "domain": ["medical"]},
            "task 'medqa.json': expected domain to be a text, found",
        ),
        (
            {"swarm_eval": "medqa.json", "protocol": "published", "match": "equal"},
            "task 'medqa': expected no match with protocol published, which decides it, found",
        ),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused(folder, entry, message):
    with pytest.raises(ValueError, match=message):
        read_task(entry, folder)


def test_tasks_share_a_domain_by_its_name(folder):
    entries = []
    for name, domain in (("medqa", "medical"), ("medmcqa", "medical")):
        entries.append(parse_task({"swarm_eval": f"{name}.json", "domain": domain}))
    entries.append(parse_task({"swarm_eval": "medqa.json", "name": "alone"}))
    assert read_tasks(entries, folder).domains == {"medical": ["medqa", "medmcqa"]}


def test_the_digest_of_a_task_is_that_of_before_there_were_protocols():
    task = Task("t", "7", "exact_match", (Example("0", "q", "a"),))
    assert task_content(task) == (
        b"Task(name='t', version='', metric='exact_match', examples=(Example(id='0', prompt='q', "
        b"target='a', choices=()),), max_new_tokens=16, match='equal', continuation='key', "
        b"chat=False)"
    )
    published = Task("t", "7", "exact_match", (Example("0", "q", "a"),), protocol="published")
    assert task_content(published) != task_content(task)


@pytest.mark.parametrize(
    ("scores", "mean"),
    [([0.5], 0.5), ([0.2, 0.3], 0.24), ([1.0, 0.0], 0.0), ([0.5, -0.1], 0.0), ([0.5, 0.5], 0.5)],
)
def test_the_harmonic_mean_by_hand(scores, mean):
    assert harmonic_mean(scores) == pytest.approx(mean)


def test_the_harmonic_mean_of_an_unknown_score_is_unknown():
    assert math.isnan(harmonic_mean([0.5, math.nan]))


def test_every_row_has_the_means_of_its_domains():
    rows = [
        ScoreRow("base", "base", {"a": 0.2, "b": 0.3, "c": 0.9}, {"a": 0.5, "b": 0.5, "c": 0.9}),
        ScoreRow("average", "expert", {"a": 1.0, "b": 0.0, "c": 0.9}, dict.fromkeys("abc", 1.0)),
    ]
    described = describe_domains(rows, {"both": ["a", "b"], "one": ["c"]})
    assert described["both"]["tasks"] == ["a", "b"]
    base, expert = described["both"]["scores"]
    assert base == {"name": "base", "kind": "base", "dev": pytest.approx(0.24), "test": 0.5}
    assert (expert["dev"], expert["test"]) == (0.0, 1.0)
    tables = [
        {"name": row.name, "kind": row.kind, "dev": row.dev, "test": row.test} for row in rows
    ]
    assert domain_cells(tables, described) == [
        ["model", "both", "one"],
        ["base", ".240 / .500", ".900 / .900"],
        ["expert average", ".000 / 1.000", ".900 / 1.000"],
    ]


def test_a_report_of_both_protocols_says_that_they_cannot_be_compared(project):
    quiz = json.loads((project / "quiz.json").read_text())
    (project / "mmlu.json").write_text(json.dumps(quiz))
    tasks = [
        {"swarm_eval": "quiz.json", "metric": "choice_likelihood", "test": 2},
        {"swarm_eval": "mmlu.json", "protocol": "published", "dev": 2, "test": 2},
    ]
    change_settings(project, budget=4, tasks=tasks)
    assert merge(project) == 0
    result = json.loads((project / "out" / "result.json").read_text())
    found = {name: task["protocol"] for name, task in result["tasks"].items()}
    assert found == {"quiz": "ours", "mmlu": "published"}
    assert result["domains"] == {}
    report = (project / "out" / "report.md").read_text()
    assert "| quiz | choice_likelihood | ours | 6 | 2 |" in report
    assert "| mmlu | multiple_choice_generation | published | 2 | 2 |" in report
    assert "Its scores cannot be compared with those of `ours`.\n\nEvoGM, 4 evaluations" in report
    assert "## Domains" not in report
