"""The examples run as they stand; those that merge language models run here on a tiny one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from builders import build_model, build_tokenizer

EXAMPLES = Path(__file__).parents[2] / "benchmarks" / "examples"
NUMBER = r"([\d.]+)"
ON_LANGUAGE_MODELS = ["distributed_merge", "pareto_front", "pso_and_cma_es"]
ELSEWHERE = [
    "many_seeds",
    "merge_image_experts",
    "own_outcomes",
    "own_problem",
    "python_function",
    "tune_evogm",
]


def run(name, *arguments, launcher=()):
    options = list(map(str, arguments))
    command = [sys.executable, *launcher, EXAMPLES / f"{name}.py", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
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


@pytest.mark.slow
def test_a_problem_of_ones_own():
    shown = run("own_problem")
    average, best = re.search(f"average {NUMBER}, best of 96 evaluations {NUMBER}", shown).groups()
    assert float(best) < float(average)


@pytest.mark.slow
def test_outcomes_of_ones_own():
    row = re.compile(rf"^\| (?:accuracy alone|with margins) \| {NUMBER} \| {NUMBER} \|$", re.M)
    alone, with_margins = row.findall(run("own_outcomes"))
    assert float(with_margins[0]) > float(alone[0])  # the best on dev
    assert float(with_margins[1]) > float(alone[1])  # what is recommended, on fresh examples


@pytest.mark.slow
def test_a_plain_python_function():
    row = re.compile(rf"^\| [\d.]+ \| [\d.]+ \| [\d.]+ \| {NUMBER} \|$", re.MULTILINE)
    rows = row.findall(run("python_function"))
    assert len(rows) == 3
    assert float(rows[0]) <= float(rows[2]) < 0.2


@pytest.mark.slow
def test_merging_image_experts():
    row = re.compile(rf"^\| ([\w ]+) \| {NUMBER} \| {NUMBER} \| {NUMBER} \| {NUMBER} \|$", re.M)
    means, own = {}, []
    for name, mean, *by_task in row.findall(run("merge_image_experts")):
        means[name] = float(mean)
        own.append([float(value) for value in by_task])
    experts = ["0 to 2", "3 to 5", "6 to 9"]
    assert list(means) == ["base", *experts, "average", "recommended"]
    for task in range(3):  # an expert is the best on its own task
        assert max(own[1:4], key=lambda values: values[task]) == own[1 + task]
    assert means["recommended"] > max(means[name] for name in ["base", *experts])


@pytest.mark.slow
def test_tuning():
    shown = run("tune_evogm")
    first, best = re.search(f"best of 8 settings {NUMBER}, best of 80 {NUMBER}", shown).groups()
    assert float(best) < float(first)


@pytest.mark.slow
def test_many_seeds_at_once():
    row = re.compile(rf"^\| (\d+) \| {NUMBER} \| {NUMBER} \| {NUMBER} \|$", re.MULTILINE)
    rows = row.findall(run("many_seeds", 3))
    assert [int(row[0]) for row in rows] == list(range(20, 161, 20))
    medians = [float(row[2]) for row in rows]
    assert medians == sorted(medians, reverse=True)
    assert medians[-1] < medians[0]


@pytest.mark.slow
def test_other_algorithms_merge(tiny):
    row = re.compile(r"^\| (SurrogateEvoGM|PSO|CMA-ES)\b", re.MULTILINE)
    found = row.findall(run("pso_and_cma_es", *tiny))
    assert found == ["SurrogateEvoGM", "PSO", "CMA-ES"]


@pytest.mark.slow
def test_a_front_of_merges(tiny):
    shown = run("pareto_front", *tiny)
    found = re.findall(r"(NSGA-II|RVEA): [1-9]\d* merges on the front", shown)
    assert found == ["NSGA-II", "RVEA"]
    assert "| gcd | chain_sum | coefficients |" in shown


@pytest.mark.slow
def test_ranks_merge_as_one_process_does(tiny):
    alone = run("distributed_merge", *tiny)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert run("distributed_merge", *tiny, launcher=launcher) == alone
    assert alone.count("\n") == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_LANGUAGE_MODELS)
def test_on_the_real_model(name):
    assert "|" in run(name)
