"""The examples of the READMEs run as they stand, and what they name exists."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from evox_evogm.command.cli import app
from evox_evogm.command.settings import parse_settings
from evox_evogm.command.task_settings import TaskSettings
from evox_evogm.problems import Example, Task

ROOT = Path(__file__).parent.parent
MAIN, ALGORITHMS, COMMAND, PROBLEMS, BENCHMARKS = (
    ROOT / folder / "README.md"
    for folder in (".", "evox_evogm", "evox_evogm/command", "problems", "benchmarks")
)
EVERY = [
    MAIN,
    ALGORITHMS,
    COMMAND,
    PROBLEMS,
    BENCHMARKS,
    *(ROOT / "benchmarks/results").glob("*.md"),
]
EVERY += [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
for folder_readme in (ALGORITHMS, COMMAND, PROBLEMS):  # the guides beside them
    EVERY += sorted(set(folder_readme.parent.glob("[A-Z]*.md")) - {folder_readme})


def blocks(readme, language):
    return re.findall(rf"```{language}\n(.*?)```", readme.read_text(), flags=re.DOTALL)


def run(text, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(text, "README.md", "exec"), {})
    return capsys.readouterr().out


def best_of_81(shown):
    return float(re.search(r"best of 81 evaluations: ([\d.]+)", shown)[1])


def test_the_main_readme_opens_with_the_two_commands():
    first, *_ = blocks(MAIN, "bash")
    commands = [line.split("#")[0].strip() for line in first.strip().splitlines()]
    assert commands == ["make demo", "make test"]


def test_the_main_readme_fits_on_a_few_screens():
    assert len(MAIN.read_text().splitlines()) <= 140
    for example in blocks(MAIN, "python"):
        lines = [line for line in example.splitlines() if line.strip()]
        assert len(lines) <= 12, example


@pytest.mark.lengthy
def test_the_evox_example_finds_a_better_point_than_the_first(capsys, monkeypatch):
    (example,) = [block for block in blocks(MAIN, "python") if "Ackley" in block]
    assert best_of_81(run(example, capsys, monkeypatch)) < 20  # Ackley is 21 almost everywhere


@pytest.mark.lengthy
def test_the_algorithms_examples_run_one_after_another(capsys, monkeypatch, tmp_path):
    examples = "\n".join(blocks(ALGORITHMS, "python")).replace("runs/mine", str(tmp_path))
    shown = run(examples, capsys, monkeypatch)
    # 29 at the first point; of 81 points around it, like the initial ones, the best has 23.
    assert best_of_81(shown) < 10
    assert (tmp_path / "history.jsonl").is_file()
    runs = json.loads(re.search(r"best of each run: (\[.*\])", shown)[1])
    assert len(set(runs)) == 3 and max(runs) < 60  # a point drawn in the box has 160 on average


@pytest.mark.slow
def test_the_merging_quick_start_exports_an_adapter(capsys, monkeypatch, tmp_path):
    (example,) = [block for block in blocks(MAIN, "python") if "LoRAMergeProblem" in block]
    run(example.replace("runs/readme", str(tmp_path)), capsys, monkeypatch)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_merging_examples_score_export_and_go_on(capsys, monkeypatch, tmp_path):
    examples = "\n".join(blocks(PROBLEMS, "python")).replace("runs/readme", str(tmp_path))
    checks = "\nassert problem.regressed and sums.metric == 'exact_match'"
    shown = run(examples + checks, capsys, monkeypatch)
    dev, test = map(float, re.search(r"dev ([\d.]+), test ([\d.]+)", shown).groups())
    assert dev >= 0.5 and 0 <= test <= 1
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("readme", EVERY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_files_that_it_names_exist(readme):
    text = readme.read_text()
    for name in re.findall(r"`((?:evox_evogm|problems|benchmarks|tests)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (readme.parent / link).exists(), link


@pytest.mark.parametrize("readme", [MAIN, COMMAND], ids=["main", "command"])
def test_the_settings_that_are_shown_are_accepted_also_with_what_is_commented_out(readme):
    examples = blocks(readme, "yaml")
    assert examples
    for example in examples:
        written = yaml.safe_load(example)
        check_scoring(parse_settings(written, readme.name).tasks)
        for line in re.findall(r"^# (\w+: .*)$", example, flags=re.MULTILINE):
            shown = yaml.safe_load(line)
            if "keep_experts" in shown:  # its line says that it goes with regmean
                shown["regmean"] = "prompts"
            parse_settings({**written, **shown}, readme.name)


def check_scoring(tasks):
    """Refuse a metric, match or continuation that no task has."""
    example = Example("0", "yes?", "A", (("A", "yes"), ("B", "no")))
    for task in tasks:
        if task.lm_eval is not None:
            continue  # its metrics are the harness's
        Task("t", "1", **{"metric": "exact_match", **task.scoring}, examples=(example,))


def test_every_setting_of_a_task_is_shown():
    (example,) = blocks(COMMAND, "yaml")
    for name in TaskSettings.model_fields:
        assert re.search(rf"\b{name}: ", example), name


def options_of(name):
    options = set()
    for parameter in get_command(app).commands[name].params:
        options.update(parameter.opts)
    return options


def test_the_options_that_are_shown_are_those_of_the_command():
    text = COMMAND.read_text()
    shown = re.findall(r"^evogm (\w+) .*$", "\n".join(blocks(COMMAND, "bash")), flags=re.MULTILINE)
    assert set(shown) == set(get_command(app).commands)
    for name in shown:
        (line,) = re.findall(rf"^evogm {name} .*$", text, flags=re.MULTILINE)
        assert set(re.findall(r"--[\w-]+", line)) <= options_of(name), line
