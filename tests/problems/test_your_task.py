"""The guide to a task of one's own runs as it stands, on a tiny base."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from guides import ROOT, blocks, code_files, run_python, run_shell

from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.tasks import read_tasks

GUIDE = ROOT / "problems" / "YOUR_TASK.md"
TEAMS = ("billing", "shipping", "returns")


@pytest.fixture
def folder(project, monkeypatch):
    """The base and adapters of the project beside the files of the guide."""
    monkeypatch.chdir(project)
    for name, code in code_files(GUIDE).items():
        Path(name).write_text(code)
    with open("tickets.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "team"])
        for number in range(26):
            writer.writerow([f"Ticket {number}, please help.", TEAMS[number % 3]])
        writer.writerow(["Ticket 3, please help.", TEAMS[0]])  # a second time
    return project


@pytest.mark.lengthy
def test_all_commands_of_the_guide_run(folder, capsys):
    statuses = []
    for code in blocks(GUIDE, "bash"):
        statuses += run_shell(code)
    assert statuses == [0] * 4
    shown = capsys.readouterr().out
    assert "task: tickets, choice_likelihood, 20 dev and 6 test examples" in shown
    assert "A: billing" in shown and "B: shipping" in shown and "C: returns" in shown
    assert "task: teams" in shown


def test_every_ticket_is_in_one_file_with_the_key_of_its_team(folder):
    run_python(Path("make_tickets.py").read_text(), "make_tickets.py")
    found = {}
    for split, count in (("dev", 20), ("test", 6)):
        rows = [
            json.loads(line) for line in Path(f"tickets_{split}.jsonl").read_text().splitlines()
        ]
        assert len(rows) == count
        found |= {row["question"]: row["choices"]["ABC".index(row["answer"])] for row in rows}
    expected = {f"Ticket {number}, please help.": TEAMS[number % 3] for number in range(26)}
    assert found == expected


def test_the_settings_for_free_answers_read_the_line_that_is_shown(folder):
    text = GUIDE.read_text()
    line = text[text.index('`{"question": "Which team') + 1 :].split("`")[0]
    Path("words_dev.jsonl").write_text(line)
    Path("words_test.jsonl").write_text(line.replace("parcel", "letter"))
    settings, where = read_settings(Path("free.yaml"), [])
    (task,) = read_tasks(settings.tasks, where).dev
    assert task.examples[0].target == "shipping" and task.match == "contains"


def test_every_settings_file_names_what_the_guide_makes():
    for name, code in code_files(GUIDE, ["yaml"]).items():
        (entry,) = yaml.safe_load(code)["tasks"]
        assert entry["name"] in ("tickets", "words", "teams"), name


class Replies:
    """A model that answers as it is told."""

    def __init__(self, replies):
        self.replies = replies

    def generate(self, prompts, max_new_tokens):
        assert all(prompt.startswith("Customer: ") for prompt in prompts) and max_new_tokens == 12
        return self.replies


@pytest.mark.parametrize(
    ("replies", "grades"),
    [
        ([" Billing.", " The team for shipping"], [1.0, 1.0]),
        ([" I think that it is billing, or", " returns"], [0.0, 0.0]),  # "billing," is no word
        ([" I think that it is for billing", ""], [0.5, 0.0]),
    ],
)
def test_the_function_grades_replies(replies, grades):
    score = run_python(code_files(GUIDE)["team_fitness.py"], "team_fitness.py")["score"]
    assert score(Replies(replies), "dev") == grades
