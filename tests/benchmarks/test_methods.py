"""The methods that are compared."""

import torch
from evox.problems.numerical import Sphere
from evox.workflows import StdWorkflow

from benchmarks.compare.methods import METHODS


def test_every_sweep_makes_the_evaluations_of_its_settings():
    for name, method in METHODS.items():
        if method.group == "sweeps":
            pop_size, budget = method.pop_size or 20, method.budget or 160
            algorithm = method.make(3, pop_size)
            rounds, steps = algorithm.n_rounds, algorithm.n_iters + 1
            assert rounds * steps * pop_size == budget, name


def test_a_search_from_known_points_evaluates_them_first():
    evaluated = []

    class Recording(Sphere):
        def evaluate(self, pop):
            evaluated.extend(pop.tolist())
            return super().evaluate(pop)

    workflow = StdWorkflow(METHODS["known initial points"].make(4, 5), Recording())
    workflow.init_step()
    workflow.step()
    average, base, experts = [0.25] * 4, [0.0] * 4, torch.eye(4).tolist()
    assert evaluated[:6] == [average, base, *experts]
    assert len(evaluated) == 10
    assert len({tuple(point) for point in evaluated}) == 10
