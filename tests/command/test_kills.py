"""The command killed, interrupted, and started twice: it goes on, and evaluates nothing again."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import change_settings, history, interrupt_searches, merge

from evox_evogm.command import cli
from evox_evogm.command.run_folder import RunLock
from evox_evogm.resume.journal import Journal

KILL_SEARCHES = Path(__file__).with_name("kill_searches.py")


@pytest.mark.lengthy
@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_searches_killed_at_random_moments_end_as_one_that_was_not(project, kills):
    command = [sys.executable, KILL_SEARCHES, project, str(kills)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    print(found)
    assert found["killed"] >= kills and found["recomputed"] == 0
    assert found["equal"] == found["finished"] > 0 and found["statuses"] == [0]
    assert found["in_a_write"] > 0 or kills < 50


def test_an_interrupted_search_says_how_to_go_on_and_goes_on(project, capsys):
    command = [sys.executable, "-m", "evox_evogm.command.cli", "merge"]
    command += [project / "run.yaml", "--out", project / "cut"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's jobs in the background ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    path = project / "cut" / "history.jsonl"
    while not (path.exists() and path.stat().st_size) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    advice = f"the same command with --out {project / 'cut'} goes on from here"
    assert said.strip() == f"evogm: interrupted; {advice}"
    before = len(history(project / "cut"))
    assert 0 < before < 16
    assert merge(project, out="cut") == 0
    assert "an earlier process began this run; it goes on" in capsys.readouterr().out
    assert merge(project, out="whole") == 0
    assert history(project / "cut") == history(project / "whole")


@pytest.fixture
def unfinished(project, monkeypatch):
    """A run folder after one step."""
    with monkeypatch.context() as first_process:
        interrupt_searches(first_process, steps=1)
        assert merge(project) == 130
    return project / "out"


def refusal(project, capsys, *options):
    capsys.readouterr()
    assert merge(project, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_other_settings_are_refused_with_the_difference(unfinished, project, capsys):
    before = (unfinished / "history.jsonl").read_bytes()
    assert "found seed 4 where it has 3; take another folder, or the same settings" in refusal(
        project, capsys, "--seed", "4"
    )
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
    path.write_text(path.read_text().replace('"format": 3', '"format": 7'))
    error = refusal(project, capsys)
    assert (
        "expected a run folder of format 3, found 7" in error
        and "another version of evox-evogm wrote" in error
    )


def test_a_second_process_on_a_run_is_refused(unfinished, project, capsys):
    with Journal(unfinished / "history.jsonl"):
        assert "expected no other process on this run" in refusal(project, capsys)
    assert merge(project) == 0


def test_a_second_process_is_refused_before_the_first_has_written_anything(project, capsys):
    lock = RunLock(project / "out")
    assert "expected no other process on this run" in refusal(project, capsys)
    files = sorted(path.name for path in (project / "out").iterdir())
    assert files == ["history.jsonl", "history.jsonl.lock"]
    lock.release()
    assert merge(project) == 0


def test_a_second_process_is_refused_until_the_result_is_written(project, monkeypatch):
    from evox_evogm.command.merge_run import MergeRun

    refused = []

    def watched(function):
        def call(self, *rest, **more):
            result = function(self, *rest, **more)
            with pytest.raises(ValueError, match="expected no other process on this run"):
                RunLock(project / "out")
            refused.append(function.__name__)
            return result

        return call

    for name in ("search", "score_rows", "finish"):
        monkeypatch.setattr(MergeRun, name, watched(getattr(MergeRun, name)))
    assert merge(project) == 0
    assert refused == ["search", "score_rows", "finish"]
    RunLock(project / "out").release()


def test_another_base_and_another_tokenizer_are_refused(unfinished, project, capsys):
    from safetensors.torch import load_file, save_file

    path = project / "base" / "model.safetensors"
    kept, tensors = path.read_bytes(), load_file(path)
    save_file(
        {**tensors, "model.norm.weight": 2 * tensors["model.norm.weight"]},
        path,
        metadata={"format": "pt"},
    )
    assert "found base changed since" in refusal(project, capsys)
    path.write_bytes(kept)
    path = project / "base" / "tokenizer.json"
    path.write_text(
        path.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true', 1)
    )
    assert "found tokenizer changed since" in refusal(project, capsys)


def test_a_damaged_run_folder_is_refused_in_one_sentence(unfinished, project, capsys):
    (unfinished / "config.yaml").write_text("")
    assert "config.yaml as evogm wrote it, found it damaged" in refusal(project, capsys)


def test_the_same_experts_in_another_order_are_refused(project, capsys, monkeypatch):
    change_settings(project, experts={"one": "experts/first", "two": "experts/second"}, budget=4)
    assert merge(project) == 0
    path = project / "run.yaml"
    lines = path.read_text().splitlines()
    one = next(i for i, line in enumerate(lines) if line.startswith("  one:"))
    lines[one], lines[one + 1] = lines[one + 1], lines[one]
    path.write_text("\n".join(lines))
    assert (
        "found experts {'two': 'experts/second', 'one': 'experts/first'} where it has"
        in refusal(project, capsys)
    )


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_as_it_is(project, capsys):
    assert merge(project) == 0
    before = contents(project / "out")
    capsys.readouterr()
    assert merge(project) == 0
    assert f"this run is finished: {project / 'out' / 'report.html'}" in capsys.readouterr().out
    assert contents(project / "out") == before


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
    assert merge(project) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and error.count("\n") == 1
    monkeypatch.setattr(Journal, "append", append)
    assert merge(project) == 0
    assert merge(project, out="whole") == 0
    assert history(project / "out") == history(project / "whole")


@pytest.mark.slow
def test_a_disk_that_is_really_full_ends_in_one_sentence_and_leaves_no_scraps(project):
    def full():  # the first records fit, the state does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    command = [sys.executable, "-m", "evox_evogm.command.cli", "merge"]
    command += [project / "run.yaml", "--out", project / "out"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=full)
    assert result.returncode == 1
    state = project / "out" / "state.safetensors"
    assert result.stderr == f"evogm: [Errno 27] File too large: '{state}'\n"
    assert sorted(path.name for path in (project / "out").iterdir()) == [
        "config.yaml",
        "history.jsonl",
        "inputs.json",
    ]
    assert len(history(project / "out")) == 4
    assert merge(project) == 0
    assert merge(project, out="whole") == 0
    assert history(project / "out") == history(project / "whole")


def test_if_every_merge_fails_the_run_stops_and_says_so(project, capsys, monkeypatch):
    from evox_evogm.problems.population_scorer import PopulationScorer

    tries = []

    def broken(self, pop, tasks):
        tries.append(len(pop))
        raise RuntimeError("no arithmetic today")

    with monkeypatch.context() as today:
        today.setattr(PopulationScorer, "score", broken)
        assert merge(project) == 1
        error = capsys.readouterr().err
        assert (
            "all 4 merges of a population failed: RuntimeError: no arithmetic today" in error
            and error.count("\n") == 1
        )
        assert tries == [4, 1, 1, 1, 1, 1, 1, 1, 1]
        assert cli.main(["merge", str(project / "run.yaml"), "--out", str(project / "out")]) == 1
        assert tries == 2 * [4, 1, 1, 1, 1, 1, 1, 1, 1]  # tried again
    assert [row["failure"] for row in history(project / "out")] == 4 * [
        "RuntimeError: no arithmetic today"
    ]
    assert merge(project) == 0
    assert merge(project, out="whole") == 0
    assert history(project / "out") == history(project / "whole")


def test_an_expert_that_has_no_scores_is_shown_without_them(project, monkeypatch):
    from evox_evogm.problems.population_scorer import PopulationScorer

    score = PopulationScorer.score

    def no_number(self, pop, tasks):
        found = score(self, pop, tasks)
        for row, point in enumerate(pop.tolist()):
            if point == [0.0, 1.0]:
                found.scores["sums"][row] = float("nan")
        return found

    monkeypatch.setattr(PopulationScorer, "score", no_number)
    assert merge(project) == 0
    assert [row["evaluation"] for row in history(project / "out") if row["score"] is None] == [1]
    result = json.loads((project / "out" / "result.json").read_text(), parse_constant=pytest.fail)
    assert [row["test"]["sums"] for row in result["scores"] if row["name"] == "second"] == ["nan"]


def test_a_merge_that_fails_twice_scores_worst_and_the_run_has_a_result(
    project, capsys, monkeypatch
):
    from evox_evogm.problems.population_scorer import PopulationScorer

    score = PopulationScorer.score

    def second_fails(self, pop, tasks):
        if [0.0, 1.0] in pop.tolist():
            raise RuntimeError("broken")
        return score(self, pop, tasks)

    monkeypatch.setattr(PopulationScorer, "score", second_fails)
    assert merge(project) == 0
    assert [row["evaluation"] for row in history(project / "out") if row["score"] is None] == [1]
    result = json.loads((project / "out" / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["evaluations"] == 16
    rows = {row["name"]: row for row in result["scores"]}
    failed = rows.pop("second")
    assert failed["failure"] == "RuntimeError: broken"
    assert failed["dev"] == failed["test"] == {"sums": "nan", "quiz": "nan"}
    for row in rows.values():
        assert row["failure"] is None and isinstance(row["test"]["sums"], float)
    note = "second: could not be scored: RuntimeError: broken"
    level = (
        "task 'quiz': base, experts and merge all score .500 on dev and .500 on test in the table, "
        "which tells none from another"
    )
    assert result["notes"] == [note, level] and f"note: {note}\n" in capsys.readouterr().out


def test_a_run_whose_models_all_fail_in_the_final_table_has_no_result_and_goes_on_later(
    project, capsys, monkeypatch
):
    from evox_evogm.problems.population_scorer import PopulationScorer

    score = PopulationScorer.score

    def test_fails(self, pop, tasks):
        if len(tasks[-1].examples) == 6:
            raise RuntimeError("broken")
        return score(self, pop, tasks)

    with monkeypatch.context() as today:
        today.setattr(PopulationScorer, "score", test_fails)
        assert merge(project) == 1
    expected = "scores: expected test scores, found that all 5 models failed: RuntimeError: broken"
    assert expected in capsys.readouterr().err
    assert not (project / "out" / "result.json").exists()
    assert merge(project) == 0
