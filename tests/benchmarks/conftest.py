"""A merge problem that can be worked out by hand, and files of runs."""

import json
from types import SimpleNamespace

import pytest
import torch
from evox.core import Problem

from benchmarks.compare.search import run_case

TOP = torch.tensor([0.5, 0.2])


class Peak(Problem):
    """A problem with the parts of `LoRAMergeProblem` that a case uses.

    The score on dev is the share of 40 circles around a peak that a point is inside of. The one on
    test falls with the squared distance from it.
    """

    n_experts = 2
    racing = None
    objectives = "outcomes"
    outcomes = (torch.full((40,), 1 / 40), torch.ones(40, dtype=torch.bool))
    language_model = SimpleNamespace(model=torch.zeros(1))

    def __init__(self, center: float):
        super().__init__()
        self.cache = {}
        self.box = (center - torch.ones(2), center + torch.ones(2))

    def evaluate(self, pop):
        margins = torch.linspace(0.05, 2, 40) - (pop - TOP).square().sum(1, keepdim=True)
        return torch.cat([(margins > 0).float().mean(1, keepdim=True), margins], 1)

    def score_tasks(self, coefficients, tasks=None):
        on_dev = self.evaluate(coefficients[None])[:, 0]
        on_test = 1 - (coefficients - TOP).square().sum(0, keepdim=True)
        return {"peak": on_dev if tasks is None else on_test}


@pytest.fixture
def peak():
    """The scores of points on `Peak`."""

    def dev(point):
        return float(Peak(0.0).score_tasks(point)["peak"])

    def test(point):
        return float(Peak(0.0).score_tasks(point, [])["peak"])

    return SimpleNamespace(dev=dev, test=test)


@pytest.fixture
def run_on_peak(tmp_path):
    """A function that runs a case on `Peak`, with its files in `tmp_path`."""

    def run(case, center=0.0):
        return run_case(case, tmp_path, lambda _: (Peak(center), []))

    return run


@pytest.fixture
def write_runs():
    """A function that writes the files of a method, a seed a score."""

    def write(folder, method, scores, *, dev=None, evaluations=1, **more_tasks):
        folder.mkdir(parents=True, exist_ok=True)
        dev = scores if dev is None else dev
        for seed, (on_dev, on_test) in enumerate(zip(dev, scores, strict=True)):
            if on_test is None:  # this seed has not run
                continue
            result = {
                "method": method,
                "seed": seed,
                "test": on_test,
                "test by task": {"peak": on_test, **more_tasks},
                "evaluations": 1,
                "seconds": 1.0,
                "seconds of evaluation": 1.0,
                "commit": "abc",
            }  # without a dtype, as files are that were written before there was one
            (folder / f"{method}_seed{seed}.json").write_text(json.dumps(result))
            rows = "".join(f"{number},{on_dev},1\n" for number in range(1, evaluations + 1))
            (folder / f"{method}_seed{seed}.csv").write_text(f"evaluation,score,seconds\n{rows}")

    return write
