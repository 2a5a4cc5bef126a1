"""The test functions, and the report on their curves."""

import pytest
import torch

from benchmarks.evox_functions.algorithms import algorithms, names
from benchmarks.evox_functions.curves import Case, run_case
from benchmarks.evox_functions.functions import (
    CEC_FUNCTIONS,
    FUNCTIONS,
    UnitBox,
    exists,
    make_problem,
    minimum,
)
from benchmarks.evox_functions.report import report


class Line(torch.nn.Module):
    """The first coordinate."""

    def evaluate(self, pop):
        return pop[:, 0]


def test_outside_the_box_the_nearest_point_inside_counts_plus_the_squared_distance():
    problem = UnitBox(Line(), 10.0, torch.tensor([0.2]))
    found = problem.evaluate(torch.tensor([[0.5], [1.5]]))
    assert found.tolist() == pytest.approx([10 * 0.3, 10 * 0.8 + (10 * 0.5) ** 2])


@pytest.mark.parametrize("function", [*FUNCTIONS, *CEC_FUNCTIONS])
def test_no_point_is_better_than_the_best_value_known(function):
    torch.manual_seed(0)
    n = 10 if not exists(function, 2) else 2
    fitness = make_problem(function, n).evaluate(4 * torch.rand(50, n) - 2)
    assert bool((fitness >= minimum(function) - 1e-3).all())


def test_three_functions_do_not_exist_in_two_dimensions():
    missing = [function for function in CEC_FUNCTIONS if not exists(function, 2)]
    assert missing == ["CEC2022-F6", "CEC2022-F7", "CEC2022-F8"]


def test_the_surrogate_runs_with_few_evaluations_alone():
    assert names(160)[:2] == ["SurrogateEvoGM", "EvoGM"]
    assert names(2000) == names(160)[1:]
    assert algorithms(2, 2000)["EvoGM"]().pop_size == 100


@pytest.mark.parametrize("algorithm", ["PSO", "CMA-ES (cmaes)"])
def test_a_case_writes_the_best_fitness_of_every_seed_after_every_step(tmp_path, algorithm):
    case = Case(algorithm, "Sphere", 2, 160)
    run_case(case, tmp_path, seeds=2)
    rows = [line.split(",") for line in (tmp_path / case.file_name).read_text().splitlines()]
    assert [row[4] for row in rows[:2]] == ["0", "1"]
    evaluations = sorted({int(row[5]) for row in rows})
    assert evaluations[-1] <= 160
    for seed in ("0", "1"):
        best = [float(row[6]) for row in rows if row[4] == seed]
        assert best == sorted(best, reverse=True)
        assert len(best) == len(evaluations)
    assert run_case(case, tmp_path, seeds=2).endswith("is there")


def test_the_report_ranks_the_medians_of_complete_cases(tmp_path, capsys):
    pytest.importorskip("scipy")
    for number, function in enumerate(["Sphere", "Ackley", "Griewank", "Schwefel"]):
        for place, algorithm in enumerate(names(160)[1:]):
            write_curve(tmp_path, algorithm, function, [place, place + number])
    write_curve(tmp_path, "SurrogateEvoGM", "Sphere", [5.5, 5.5])
    write_curve(tmp_path, "PSO", "Rastrigin", [1.0, 1.0])  # which no other has run
    report(tmp_path)
    shown = capsys.readouterr().out
    assert "160 evaluations, 4 cases, 2 seeds: Friedman" in shown
    lines = [line for line in shown.splitlines() if line.startswith("| ")]
    assert lines[-10].startswith("| EvoGM | 1.00 | 1.00 |")
    assert lines[-1].startswith("| CMA-ES (cmaes) | 10.00 | 10.00 | 4 / 0 |")
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"medians.csv", "160_2.png", "ranks_160_10.svg"} <= written


def write_curve(folder, algorithm, function, final):
    """A file of two steps, a seed a final fitness."""
    case = Case(algorithm, function, 2, 160)
    lines = []
    for evaluations, more in ((20, 1.0), (40, 0.0)):
        for seed, best in enumerate(final):
            lines.append(f"{algorithm},{function},2,160,{seed},{evaluations},{best + more},0.1\n")
    (folder / case.file_name).write_text("".join(lines))


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="expected the files of evox_functions run, found none"):
        report(tmp_path)
