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


def generators_before_and_after(method):
    """The generators of a search after its first step, and two steps later."""
    algorithm = METHODS[method].make(2, 5)
    workflow = StdWorkflow(algorithm, Sphere())
    workflow.init_step()
    before = algorithm.generators.clone()
    for _ in range(2):
        workflow.step()
    return before, algorithm.generators


def test_without_generators_nothing_is_trained():
    before, after = generators_before_and_after("no generators")
    assert torch.equal(before, after)
    before, after = generators_before_and_after("SurrogateEvoGM")
    assert not torch.equal(before, after)


def test_without_generators_no_candidate_is_generated():
    assert len(METHODS["no generators"].make(2, 5)._generate_candidates()) == 0


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
