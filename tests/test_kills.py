"""The command killed, interrupted, and started twice: it goes on where it was, and nothing is evaluated again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import change_settings, history, merge

from evox_evogm import cli
from evox_evogm.journal import Journal

KILL_SEARCHES = Path(__file__).with_name("kill_searches.py")


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_searches_killed_at_random_moments_end_as_one_that_was_not(project, kills):
    command = [sys.executable, KILL_SEARCHES, project, str(kills)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    print(found)
    assert found["killed"] >= kills and found["recomputed"] == 0
    assert found["equal"] == found["finished"] > 0 and found["statuses"] == [0]


def test_an_interrupted_search_says_how_to_go_on_and_goes_on(project, capsys):
    command = [sys.executable, "-m", "evox_evogm.cli", "merge", project / "run.yaml", "--out", project / "cut"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path = project / "cut" / "history.jsonl"
    while not (path.exists() and path.stat().st_size) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert said.strip() == f"evogm: interrupted; the same command with --out {project / 'cut'} goes on from here"
    before = len(history(project / "cut"))
    assert 0 < before < 16
    assert merge(project, out="cut") == 0
    assert "an earlier process began this run; it goes on" in capsys.readouterr().out
    assert merge(project, out="whole") == 0
    assert history(project / "cut") == history(project / "whole")


@pytest.fixture
def unfinished(project, monkeypatch):
    """A run folder after one step."""
    from evox_evogm.resume import ResumableSearch

    run = ResumableSearch.run
    monkeypatch.setattr(ResumableSearch, "run", lambda self, steps: run(self, 1) or (_ for _ in ()).throw(KeyboardInterrupt))
    assert merge(project) == 130
    monkeypatch.undo()
    os.environ["HF_HUB_OFFLINE"] = "1"
    return project / "out"


def refusal(project, capsys, *options):
    capsys.readouterr()
    assert merge(project, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_other_settings_are_refused_with_the_difference(unfinished, project, capsys):
    before = (unfinished / "history.jsonl").read_bytes()
    assert "found seed 4 where it has 3; take another folder, or the same settings" in refusal(project, capsys, "--seed", "4")
    change_settings(project, search={"n_iters": 2})
    assert "found search {'n_iters': 2} where it has {" in refusal(project, capsys)
    assert (unfinished / "history.jsonl").read_bytes() == before


def test_changed_adapters_and_tasks_are_refused(unfinished, project, capsys, make_adapter):
    path = project / "test.jsonl"
    kept = path.read_text()
    path.write_text(kept.replace("10 + 10", "ten plus ten"))
    assert "task sums (test) changed since" in refusal(project, capsys)
    path.write_text(kept)
    make_adapter("first", seed=7)
    assert "expert first changed since" in refusal(project, capsys)


def test_a_run_folder_of_another_version_is_refused(unfinished, project, capsys):
    path = unfinished / "inputs.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 7'))
    error = refusal(project, capsys)
    assert "expected a run folder of format 1, found 7" in error and "another version of evox-evogm wrote" in error


def test_a_second_process_on_a_run_is_refused(unfinished, project, capsys):
    with Journal(unfinished / "history.jsonl"):
        assert "expected no other process on this run" in refusal(project, capsys)
    assert merge(project) == 0


def test_a_finished_run_is_left_as_it_is(project, capsys):
    assert merge(project) == 0
    before = {path.name: path.read_bytes() for path in (project / "out").iterdir() if path.is_file()}
    capsys.readouterr()
    assert merge(project) == 0
    assert f"this run is finished: {project / 'out' / 'report.md'}" in capsys.readouterr().out
    assert before == {path.name: path.read_bytes() for path in (project / "out").iterdir() if path.is_file()}


def test_a_run_that_ended_before_its_first_evaluation_starts_anew(project):
    (project / "out").mkdir()
    (project / "out" / "inputs.json").write_text("{")
    (project / "out" / "config.yaml.part").write_text("base:")
    assert merge(project) == 0


def test_a_full_disk_ends_in_one_sentence_and_the_run_goes_on_later(project, capsys, monkeypatch):
    append, calls = Journal.append, []

    def full(self, block):
        calls.append(block)
        if len(calls) == 3:
            self.file.write(b'{"evaluation": 1')
            self.file.flush()
            raise OSError(28, "No space left on device")
        append(self, block)

    monkeypatch.setattr(Journal, "append", full)
    assert "No space left on device" in refusal(project, capsys)
    monkeypatch.setattr(Journal, "append", append)
    assert merge(project) == 0
    assert merge(project, out="whole") == 0
    assert history(project / "out") == history(project / "whole")


def test_if_every_merge_fails_the_run_stops_and_says_so(project, capsys, monkeypatch):
    from evox_evogm.problems import LoRAMergeProblem

    def broken(self, pop, tasks=None):
        raise RuntimeError("no arithmetic today")

    monkeypatch.setattr(LoRAMergeProblem, "score_together", broken)
    assert merge(project) == 1
    error = capsys.readouterr().err
    assert "all 4 merges of a population failed: RuntimeError: no arithmetic today" in error and error.count("\n") == 1
    assert cli.main(["merge", str(project / "run.yaml"), "--out", str(project / "out")]) == 1
