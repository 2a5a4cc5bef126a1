"""A folder goes on only as the run that it holds, and with one process at a time."""

import json

import pytest

from evox_evogm.command.run_folder import (
    RunLock,
    change_budget,
    check_same_inputs,
    check_same_settings,
    saved_settings,
    write_inputs,
)
from evox_evogm.command.settings import RunSettings
from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.journal import Journal

EXPERTS = {"one": "x", "two": "y"}


def settings(**changes):
    needed = {"base": "base", "experts": EXPERTS, "tasks": [{"swarm_eval": "quiz.json"}]}
    return RunSettings(**{**needed, **changes})


@pytest.fixture
def begun(tmp_path):
    write_inputs(
        tmp_path,
        settings(),
        {"base": "12", "expert one": "34"},
        {"threads": 2},
    )
    return tmp_path


def test_every_earlier_result_is_kept(begun):
    for number in range(3):
        (begun / "result.json").write_text(str(number))
        change_budget(begun, settings(budget=60), settings(budget=60, confirm=number + 1))
    kept = [(begun / f"result_60{end}.json").read_text() for end in ("", "-2", "-3")]
    assert kept == ["0", "1", "2"] and not (begun / "result.json").exists()


def test_the_same_settings_go_on_and_auto_agrees_with_what_was_chosen(begun):
    chosen = {"dtype": "bfloat16", "mode": {"sums": "merged", "quiz": "merged"}}
    saved = saved_settings(begun).model_copy(update=chosen)
    check_same_settings(settings(), saved, begun)
    check_same_settings(settings(mode="merged"), saved, begun)
    with pytest.raises(ValueError, match="found mode 'unmerged' where it has"):
        check_same_settings(settings(mode="unmerged"), saved, begun)
    with pytest.raises(ValueError, match="found dtype 'float16' where it has 'bfloat16'"):
        check_same_settings(settings(dtype="float16"), saved, begun)


WHOLE = "found experts .* where it has .'one': 'x', 'two': 'y'.; take another folder"


@pytest.mark.parametrize(
    "experts, sentence",
    [
        ({"two": "y", "one": "x"}, WHOLE),
        ({"one": "y", "two": "x"}, "found experts.one 'y' where it has 'x'; take another folder"),
        ({"one": "x"}, WHOLE),
        (["x", "y"], WHOLE),
    ],
    ids=["reordered", "swapped", "fewer", "a list"],
)
def test_other_experts_are_refused_and_so_is_another_order_which_is_that_of_the_coefficients(
    begun, experts, sentence
):
    with pytest.raises(ValueError, match=sentence):
        check_same_settings(settings(experts=experts), saved_settings(begun), begun)


def test_of_tables_and_lists_the_key_that_differs_is_named(begun):
    saved = settings(search={"epochs": 2, "lr": 0.1})
    with pytest.raises(ValueError, match="found search.epochs 3 where it has 2; take another"):
        check_same_settings(settings(search={"epochs": 3, "lr": 0.1}), saved, begun)
    with pytest.raises(ValueError, match=r"found search \{'epochs': 2\} where it has"):
        check_same_settings(settings(search={"epochs": 2}), saved, begun)
    tasks = [{"swarm_eval": "poll.json"}]
    with pytest.raises(ValueError, match="found tasks.0.swarm_eval 'poll.json' where it has 'quiz"):
        check_same_settings(settings(tasks=tasks), settings(), begun)


@pytest.mark.parametrize("digests", [{"base": "13", "expert one": "34"}, {"expert one": "34"}])
def test_another_base_is_refused(begun, digests):
    check_same_inputs({"base": "12", "expert one": "34"}, begun)
    with pytest.raises(
        ValueError,
        match="expected the inputs of the run in .*, found base changed since; "
        "take another folder, or the same inputs$",
    ):
        check_same_inputs(digests, begun)


def test_what_may_explain_a_difference_is_written_down(begun):
    assert json.loads((begun / "inputs.json").read_text())["made with"] == {"threads": 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "config.yaml",
            "base: [",
            "config.yaml as evogm wrote it, found it damaged: while parsing",
        ),
        ("config.yaml", "", "config.yaml as evogm wrote it, found it damaged: not a table"),
        ("config.yaml", "base: x", "found it damaged: settings: expected the setting 'experts'"),
        ("config.yaml", "[" * 10_000, "config.yaml as evogm wrote it, found it damaged: "),
        ("inputs.json", "[]", "inputs.json as evogm wrote it, found it damaged: not a table"),
        ("inputs.json", "{", "inputs.json as evogm wrote it, found it damaged: Expecting"),
        ("inputs.json", "{}", "expected a run folder of format 3, found None in"),
        ("inputs.json", '{"format": 3}', "expected a run folder of format 3, found 3 in"),
        (
            "inputs.json",
            '{"format": 2, "sha256": {}}',
            "expected a run folder of format 3, found 2 in",
        ),
        ("inputs.json", None, "inputs.json beside the history of the run, found none"),
    ],
)
def test_a_damaged_run_folder_is_refused_and_is_no_new_run(begun, name, content, message):
    (begun / name).unlink()
    if content is not None:
        (begun / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        saved_settings(begun)


def test_one_process_has_a_folder_until_it_lets_go(tmp_path):
    lock = RunLock(tmp_path / "out")
    with pytest.raises(ValueError, match="expected no other process on this run"):
        RunLock(tmp_path / "out")
    with pytest.raises(ValueError, match="expected no other process on this run"):
        Journal(tmp_path / "out" / "history.jsonl")
    lock.release()
    RunLock(tmp_path / "out").release()


@pytest.mark.parametrize("existed", [False, True])
def test_a_folder_in_which_no_run_began_is_left_as_it_was(tmp_path, existed):
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    RunLock(out).release()
    assert out.exists() == existed and (not existed or not any(out.iterdir()))


def test_a_lock_file_that_a_killed_process_left_behind_does_not_matter(tmp_path):
    (tmp_path / "history.jsonl.lock").touch()
    RunLock(tmp_path).release()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["thesis.txt", "history.jsonl"])
def test_other_files_are_not_touched(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        ValueError,
        match="expected a new or empty folder or an earlier run, found .* with other files in it",
    ):
        RunLock(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]
    with pytest.raises(ValueError, match=f"or an earlier run, found the file .*{name}$"):
        RunLock(tmp_path / name)


def test_a_file_that_cannot_be_written_keeps_its_content_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "config.yaml"
    atomic_write(path, b"old")
    with pytest.raises(TypeError):
        atomic_write(path, None)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("config.yaml", b"old")]
