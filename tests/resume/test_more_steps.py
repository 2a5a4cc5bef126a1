"""A search goes on with more steps, also after a point was evaluated outside of them."""

from contextlib import closing

import torch
from builders import history
from evox.algorithms import PSO
from evox.core import Problem
from evox.workflows import StdWorkflow

from evox_evogm import ResumableSearch


class Sphere(Problem):
    def evaluate(self, pop):
        return pop.square().sum(1)


def begin(folder):
    torch.manual_seed(0)
    box = torch.full((2,), 4.0)
    return ResumableSearch(StdWorkflow(PSO(3, -box, box), Sphere()), folder)


def points(folder, *, recommended):
    rows = [row for row in history(folder) if row.get("recommended", False) == recommended]
    return [(row["step"], row["coefficients"]) for row in rows]


def test_points_evaluated_outside_of_steps_are_marked_and_passed_over(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with closing(begin(whole)) as search:
        search.run(6)
    outside = torch.ones(1, 2)
    for steps in (2, 4):
        with closing(begin(cut)) as search:
            search.run(steps)
            # In the next process too: it has been written down.
            assert search.workflow.problem.evaluate(outside).tolist() == [2.0]
    with closing(begin(cut)) as search:
        assert search.workflow.problem.evaluate(outside).tolist() == [2.0]
        search.run(6)
        assert search.steps == 6
    assert points(cut, recommended=False) == points(whole, recommended=False)
    assert points(cut, recommended=True) == [(1, [1.0, 1.0]), (3, [1.0, 1.0])]
    assert not points(whole, recommended=True)
    assert [row["evaluation"] for row in history(cut)] == list(range(6 * 3 + 2))
