"""The examples run as they stand; those that merge language models run here on a tiny one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from builders import build_model, build_tokenizer

EXAMPLES = Path(__file__).parents[2] / "benchmarks" / "examples"
ON_LANGUAGE_MODELS = ["distributed_merge", "pareto_front", "pso_and_cma_es"]
ELSEWHERE = ["many_seeds", "own_outcomes", "own_problem", "python_function", "tune_evogm"]


def run(name, *arguments, launcher=()):
    command = [sys.executable, *launcher, EXAMPLES / f"{name}.py", *map(str, arguments)]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture
def tiny(tmp_path, make_adapter):
    """A base folder and two adapters, as the examples take them."""
    build_model().save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    return [tmp_path / "base", make_adapter("first", seed=1), make_adapter("second", seed=2, r=2)]


def test_every_example_is_tested_and_fits_on_a_screen():
    files = sorted(EXAMPLES.glob("*.py"))
    assert [file.stem for file in files] == sorted(ON_LANGUAGE_MODELS + ELSEWHERE)
    assert all(len(file.read_text().splitlines()) < 60 for file in files)


def test_a_problem_of_ones_own():
    found = re.search(r"average ([\d.]+), best of 96 evaluations ([\d.]+)", run("own_problem"))
    assert float(found[2]) < float(found[1])


def test_outcomes_of_ones_own():
    found = re.findall(
        r"best of 40 evaluations ([\d.]+); the answer on 5,000 fresh examples ([\d.]+)",
        run("own_outcomes"),
    )
    assert [
        float(with_margins) > float(alone) for alone, with_margins in zip(*found, strict=True)
    ] == [True, True]


def test_a_plain_python_function():
    rows = re.findall(
        r"^\| [\d.]+ \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|$", run("python_function"), re.MULTILINE
    )
    assert len(rows) == 3 and float(rows[0]) <= float(rows[2]) < 0.2


def test_tuning():
    found = re.search(r"best of 8 settings ([\d.]+), best of 80 ([\d.]+)", run("tune_evogm"))
    assert float(found[2]) < float(found[1])


def test_many_seeds_at_once():
    rows = re.findall(
        r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", run("many_seeds", 3), re.MULTILINE
    )
    assert [int(row[0]) for row in rows] == list(range(20, 161, 20))
    medians = [float(row[2]) for row in rows]
    assert medians == sorted(medians, reverse=True) and medians[-1] < medians[0]


def test_other_algorithms_merge(tiny):
    output = run("pso_and_cma_es", *tiny)
    assert re.findall(r"^\| (EvoGM|PSO|CMA-ES)\b", output, re.MULTILINE) == [
        "EvoGM",
        "PSO",
        "CMA-ES",
    ]


def test_a_front_of_merges(tiny):
    output = run("pareto_front", *tiny)
    assert re.findall(r"(NSGA-II|RVEA): [1-9]\d* merges on the front", output) == [
        "NSGA-II",
        "RVEA",
    ]
    assert "| gcd | chain_sum | coefficients |" in output


def test_ranks_merge_as_one_process_does(tiny):
    alone = run("distributed_merge", *tiny)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert run("distributed_merge", *tiny, launcher=launcher) == alone
    assert alone.count("\n") == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_LANGUAGE_MODELS)
def test_on_the_real_model(name):
    assert "|" in run(name)
