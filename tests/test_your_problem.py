"""The guide to a problem of one's own runs as it stands, and its figures are those it says."""

import re

import numpy as np
import pytest
import torch
from guides import ROOT, blocks, run_python

GUIDE = ROOT / "evox_evogm" / "YOUR_PROBLEM.md"
CODE = "\n".join(blocks(GUIDE, "python"))


def error_by_numpy(point, inputs, values):
    """The mean squared error on the last 40 values of a kernel ridge regression on the others."""
    scaled = inputs / np.exp(point[:5])
    distances = ((scaled[:, None] - scaled[None]) ** 2).sum(-1)
    kernel = np.exp(-distances / 2)
    fitted = np.linalg.solve(kernel[:40, :40] + np.exp(point[5]) * np.eye(40), values[:40])
    return float(((kernel[40:, :40] @ fitted - values[40:]) ** 2).mean())


def by_numpy(found, point):
    problem = found["problem"]
    arrays = (problem.inputs.double().numpy(), problem.values.double().numpy())
    return error_by_numpy(point.double().numpy(), *arrays)


def test_the_first_points_are_scored_as_numpy_does():
    found = run_python(CODE.replace("range(19)", "range(1)"), "guide.py")
    best = found["best"]
    scored = found["problem"].evaluate(best[None])
    assert float(scored) == pytest.approx(by_numpy(found, best), rel=1e-3)
    assert ((found["lower"] <= best) & (best <= found["upper"])).all()
    middle = (found["lower"] + found["upper"]) / 2
    assert f"{by_numpy(found, middle):.3f}".removeprefix("0") in GUIDE.read_text()


@pytest.mark.slow
def test_the_search_finds_what_the_guide_says(capsys):
    found = run_python(CODE, "guide.py")
    shown = capsys.readouterr().out
    alone, with_outcomes = map(float, re.findall(r"error ([\d.]+)", shown))
    assert alone < 0.03 and with_outcomes < 0.03  # random points have .046 at best
    point = found["monitor"].get_best_solution()
    assert by_numpy(found, point) == pytest.approx(alone, abs=1e-3)
    assert (point[2:5] > point[:2].max()).all()  # long scales for inputs that say nothing


def run_search(algorithm, problem, steps):
    """The best error that an algorithm finds in so many steps."""
    from evox.workflows import EvalMonitor, StdWorkflow

    monitor = EvalMonitor()
    workflow = StdWorkflow(algorithm, problem, monitor)
    workflow.init_step()
    for _ in range(steps - 1):
        workflow.step()
    return float(monitor.get_best_fitness())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_table_says_what_each_search_finds_in_60_evaluations(seed):
    from evox.algorithms import PSO

    from evox_evogm import SurrogateEvoGM

    found = run_python(CODE.replace("range(19)", "range(1)"), "guide.py")
    problem, lower, upper = (found[name] for name in ("problem", "lower", "upper"))
    rows = re.findall(r"^\| ([^|]*) \| ([., \d]+) \|$", GUIDE.read_text(), re.MULTILINE)
    surrogate, swarm, random = (float(errors.split(", ")[seed]) for _, errors in rows)
    torch.manual_seed(seed)
    error = run_search(PSO(20, lower, upper), problem, 3)
    assert error == pytest.approx(swarm, abs=6e-4)
    points = lower + (upper - lower) * torch.rand(60, 6)
    assert float(problem.evaluate(points).min()) == pytest.approx(random, abs=6e-4)
    torch.manual_seed(seed)
    error = run_search(SurrogateEvoGM(3, lower, upper), problem, 20)
    assert error == pytest.approx(surrogate, abs=2e-3)
