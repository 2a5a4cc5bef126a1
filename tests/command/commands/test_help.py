"""What every command has in common: short help, exit statuses, completion, and a quick start."""

import re
import resource
import subprocess
import sys

import pytest
from typer.main import get_command

from evox_evogm.command import cli

COMMANDS = [
    "init",
    "check",
    "merge",
    "demo",
    "score",
    "compare",
    "export",
    "report",
    "settings",
]


def help_of(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*words, "--help"]) == 0
    return capsys.readouterr().out


def test_these_are_the_commands():
    assert list(get_command(cli.app).commands) == COMMANDS


@pytest.mark.parametrize(
    "words", [[], *[[name] for name in COMMANDS]], ids=lambda words: str(words)
)
def test_the_help_fits_a_screen_and_says_the_exit_statuses(words, capsys, monkeypatch):
    lines = help_of(words, capsys, monkeypatch).rstrip().splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "Exit status: 0 when" in text
    assert "2 for input that cannot be used" in text and "130 when interrupted" in text


def test_the_help_of_all_names_every_command_and_shell_completion(capsys, monkeypatch):
    text = help_of([], capsys, monkeypatch)
    for name in COMMANDS:
        assert re.search(rf"^│ {name} ", text, flags=re.MULTILINE)
    assert "--install-completion" in text and "--show-completion" in text


LATE = ("torch", "evox", "transformers", "peft", "numpy", "rich.live")


@pytest.mark.lengthy
def test_the_help_needs_nothing_that_takes_long_and_comes_within_a_second():
    check = (
        "import sys; sys.argv = ['evogm']; from evox_evogm.command.cli import main; "
        "assert main(['merge', '--help']) == 0; "
        f"late = set({LATE}) & set(sys.modules); assert not late, late"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    # Of the processor: the machine may do something else at the same time.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_completion_offers_the_commands():
    environment = {"_EVOGM_COMPLETE": "complete_bash", "COMP_WORDS": "evogm s", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['evogm']; from evox_evogm.command.cli import app; "
    command = [sys.executable, "-c", code + "app(prog_name='evogm')"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == ["score", "settings"], result.stderr


@pytest.mark.parametrize("name", ["init", "check", "merge", "score", "compare", "export", "report"])
def test_a_command_without_its_words_ends_in_status_2(name, capsys):
    assert cli.main([name]) == 2
    assert f"Usage: evogm {name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["check", "none.yaml"], "settings: expected a YAML file, found none at none.yaml"),
        (["score", "none.yaml"], "settings: expected a YAML file, found none at none.yaml"),
        (["export", "nowhere"], "run: expected the folder of a finished run, found no folder at"),
        (["report", "nowhere"], "run: expected the folder of a finished run, found no folder at"),
        (["compare", "nowhere", "x"], "compare: expected a run folder, a file of evogm score or"),
        (["init", "nowhere"], "expected a folder with adapter_config.json and adapter_model"),
        (["settings", "bugdet"], "settings: found the unknown setting 'bugdet'; did you mean"),
    ],
)
def test_what_is_not_there_is_named_in_one_sentence(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_budget_that_is_none_is_a_wrong_use(capsys):
    assert cli.main(["merge", "run.yaml", "--budget", "many"]) == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "Usage: evogm merge" in error and "or a time such as 20min, found 'many'" in error
