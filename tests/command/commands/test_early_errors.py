"""Errors that need no model come before torch, transformers and EvoX are imported."""

import json
import subprocess
import sys

import pytest

from evox_evogm.command.early_checks import check_adapter, check_early, is_missing_path
from evox_evogm.command.settings import parse_settings

HEAVY = ("torch", "transformers", "evox", "peft")
# Runs every command in one process, and says what each printed and what it had imported.
SCRIPT = """
import contextlib, io, json, sys
from evox_evogm.command import cli
for words in json.loads(sys.argv[1]):
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        status = cli.main(words)
    heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    print(json.dumps([status, errors.getvalue(), heavy]))
"""
TASKS = "tasks: [{json_lines: dev.jsonl, test_file: test.jsonl}]"
COMMANDS = {
    "--version": (0, ""),
    "merge nosuch.yaml": (2, "settings: expected a YAML file, found none at nosuch.yaml"),
    "check run.yaml budgett=3": (2, "found the unknown setting 'budgett'; did you mean 'budget'?"),
    "merge run.yaml seed=one": (2, "seed: expected a whole number, found 'one'"),
    "score run.yaml --set experts=adaptors": (2, "found no such folder; did you mean"),
    "merge run.yaml": (2, "task 'dev': expected a file, found none at "),
    "check adapters": (2, "settings: expected a YAML file, found the folder adapters"),
    "report adaptors": (2, "found no folder at adaptors; did you mean 'adapters'?"),
    "compare adaptors run.yaml": (2, "found 'adaptors'; did you mean 'adapters'?"),
    "check run.yaml algorithm=EvoGN": (2, "found 'EvoGN'; did you mean 'EvoGM'?"),
    "report nosuch": (2, "run: expected the folder of a finished run, found no folder at nosuch"),
    "export adapters": (2, "found no run in adapters"),
    "compare nosuch run.yaml": (2, "expected a run folder, a file of evogm score"),
    "init nosuch -o new.yaml": (
        2,
        "expert 'nosuch' (nosuch): expected a folder with adapter_config.json",
    ),
    "merge run.yaml tasks.0.metric=exact_mach": (2, "did you mean 'exact_match'?"),
    "init adapters": (2, "out: expected a new file, found run.yaml"),
    "init adapters -o new.yaml --task nosuch.json": (2, "task: found no file nosuch.json"),
}


def test_torch_is_not_imported_for_them(tmp_path):
    (tmp_path / "adapters").mkdir()
    (tmp_path / "run.yaml").write_text(f"base: base\nexperts: adapters\n{TASKS}\n")
    commands = json.dumps([command.split() for command in COMMANDS])
    words = [sys.executable, "-c", SCRIPT, commands, json.dumps(HEAVY)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for (command, (status, part)), line in zip(COMMANDS.items(), lines, strict=True):
        found_status, errors, heavy = json.loads(line)
        assert (found_status, heavy) == (status, []), command
        assert part in errors, (command, errors)


def settings(**changes):
    tasks = [{"json_lines": "dev.jsonl", "test_file": "test.jsonl"}]
    return parse_settings({"base": "b", "experts": "owner/name", "tasks": tasks, **changes}, "")


def test_what_may_be_on_the_hub_is_left_to_the_hub(tmp_path):
    for name in ("dev", "test"):
        (tmp_path / f"{name}.jsonl").touch()
    check_early(settings(), tmp_path)
    check_early(settings(experts=["owner/name@main/folder", "hf://owner/name"]), tmp_path)
    check_adapter("owner/name", "name")
    assert is_missing_path("/nowhere/name", tmp_path) and is_missing_path("../name", tmp_path)
    (tmp_path / "owner").mkdir()  # so that the name is a path
    with pytest.raises(ValueError, match=r"expert 'mine' \(.*owner/name\): expected a folder with"):
        check_early(settings(experts={"mine": "owner/name"}), tmp_path)


@pytest.mark.parametrize("base", ["/nowhere/qwen", "./bas", "../nowhere/qwen"])
def test_a_base_that_is_written_as_a_path_must_be_there(tmp_path, base):
    with pytest.raises(ValueError, match=r"^base: expected .*, found no such folder at .*"):
        check_early(settings(base=base), tmp_path)


def test_a_base_of_the_hub_or_a_package_is_left_to_them(tmp_path):
    (tmp_path / "owner").mkdir()
    (tmp_path / "base").mkdir()
    for name in ("dev", "test"):
        (tmp_path / f"{name}.jsonl").touch()
    for base in ("gpt2", "smollm2-135m-instruct", "owner/name", "owner/name@main/base", "./base"):
        check_early(settings(base=base, experts="other/name"), tmp_path)


def test_a_chat_template_must_be_there(tmp_path):
    for name in ("dev.jsonl", "test.jsonl", "mine.jinja"):
        (tmp_path / name).touch()
    check_early(settings(chat_template_file="mine.jinja"), tmp_path)
    with pytest.raises(ValueError, match="^chat_template_file: .*; did you mean '.*mine.jinja'"):
        check_early(settings(chat_template_file="mine.jinj"), tmp_path)


def test_images_of_a_task_must_be_there(tmp_path):
    entry = {"images": "pets/dev", "test_images": "pets/test.npz", "head": "head"}
    for path in ("pets/dev", "pets/test.npz"):
        with pytest.raises(
            ValueError, match=f"^task 'pets/dev': expected a file or a .* {tmp_path / path}$"
        ):
            check_early(settings(tasks=[entry]), tmp_path)
        (tmp_path / path).mkdir(parents=True)
    with pytest.raises(ValueError, match="^task 'pets/dev': head: expected a file, a folder or a "):
        check_early(settings(tasks=[entry]), tmp_path)
    (tmp_path / "head").mkdir()
    check_early(settings(tasks=[entry]), tmp_path)
    check_early(settings(tasks=[{**entry, "head": "org/pets@v1"}]), tmp_path)


def test_a_data_set_that_is_nearly_right_is_named(tmp_path):
    tasks = [{"reasoning_gym": "sylogism", "dev": 2, "test": 2}]
    with pytest.raises(ValueError, match="found 'sylogism'; did you mean 'syllogism'"):
        check_early(settings(tasks=tasks), tmp_path)
