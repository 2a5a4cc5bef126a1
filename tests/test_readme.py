"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

from evox_evogm.command import cli

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def run_block(text, capsys, monkeypatch):
    monkeypatch.chdir(README.parent)
    exec(compile(text, "README.md", "exec"), {})
    return capsys.readouterr().out


def test_it_opens_with_the_two_commands():
    first = re.search(r"```bash\n(.*?)```", README.read_text(), flags=re.DOTALL)[1]
    assert [line.split("#")[0].strip() for line in first.strip().splitlines()] == [
        "make demo",
        "make test",
    ]


def test_the_evox_example_has_15_lines_and_finds_a_better_point_than_the_first(capsys, monkeypatch):
    (example,) = [block for block in BLOCKS if "Ackley" in block]
    assert len(example.strip().splitlines()) <= 15
    best = float(
        re.search(r"best of 81 evaluations: ([\d.]+)", run_block(example, capsys, monkeypatch))[1]
    )
    assert best < 20  # Ackley is about 21 almost everywhere


def test_a_problem_of_ones_own_takes_the_place_of_ackley(capsys, monkeypatch):
    example, own = (
        next(block for block in BLOCKS if word in block) for word in ("Ackley()", "class Mine")
    )
    run_own = example.replace(
        "workflow = StdWorkflow(algorithm, Ackley()",
        own + "workflow = StdWorkflow(algorithm, Mine()",
    )
    best = float(
        re.search(r"best of 81 evaluations: ([\d.]+)", run_block(run_own, capsys, monkeypatch))[1]
    )
    assert (
        best < 10
    )  # 29 in the first point; of 81 points around it, like the first ones, the best has 23 in the mean


@pytest.mark.slow
def test_the_merging_examples_score_a_merge_export_it_and_go_on_to_outcomes_and_regression(
    capsys, monkeypatch, tmp_path
):
    first, *others = [block for block in BLOCKS if "LoRAMergeProblem(" in block]
    ends = [
        "workflow.init_step()\nassert algorithm.answer().shape == (2,)",
        "assert problem.regressed",
    ]
    blocks = [
        first.replace("runs/readme", str(tmp_path)),
        *(a + b for a, b in zip(others, ends, strict=True)),
    ]
    shown = run_block("\n".join(blocks), capsys, monkeypatch)
    dev, test = map(float, re.search(r"dev ([\d.]+), test ([\d.]+)", shown).groups())
    assert dev >= 0.5 and 0 <= test <= 1
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_files_it_names_exist():
    root = README.parent
    for name in re.findall(r"`((?:evox_evogm|problems|benchmarks)/[\w./]+)`", README.read_text()):
        assert (root / name).exists(), name


def test_the_options_it_shows_are_those_of_the_command():
    text = README.read_text()
    shown = {
        name: re.search(rf"^evogm {name} .*$", text, flags=re.MULTILINE)[0]
        for name in ("merge", "demo")
    }
    parser = cli.build_parser()
    for name, line in shown.items():
        words = re.sub(r"[\[\]]", "", line).replace("DIR", "d").replace("N", "1").split()[1:]
        assert parser.parse_args(words).command == name
