"""Searches with an objective for each task: their first population, and the front."""

import itertools

import pytest
import torch
from evox.core import Problem
from evox.workflows import StdWorkflow

from evox_evogm.command.constraint_settings import MULTI_OBJECTIVE
from evox_evogm.command.multi_objective import (
    arguments_of,
    front_of,
    initial_population,
    make_multi_objective,
)
from evox_evogm.problems.lora_merge import box_of


def record(*scores):
    tasks = dict(zip("abc", scores, strict=False))
    return {"score": sum(scores) / len(scores), "tasks": tasks}


def test_the_front_has_what_nothing_beats_best_mean_first():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(6, (60, 3), generator=generator).tolist()
    records = [record(*row) for row in rows] + [{"score": None, "tasks": {}}]
    expected = set()
    for row in map(tuple, rows):
        better = [
            o for o in rows if all(x >= y for x, y in zip(o, row, strict=True)) and tuple(o) != row
        ]
        if not better:
            expected.add(row)
    front = front_of(records)
    found = [tuple(entry["tasks"].values()) for entry in front]
    assert set(found) == expected and len(found) == len(expected) > 1
    assert all(a["score"] >= b["score"] for a, b in itertools.pairwise(front))


def test_merges_that_break_a_constraint_are_on_the_front_only_if_all_do():
    kept, broken = record(0.5, 0.1), {**record(0.4, 0.9), "score": -0.1}
    assert front_of([broken, kept], floor=0.0) == [kept]
    assert front_of([broken], floor=0.0) == [broken]


def test_the_first_population_has_the_average_and_single_experts():
    torch.manual_seed(0)
    lb, ub = box_of(2, regressed=False)
    points = initial_population(6, lb.repeat_interleave(2), ub.repeat_interleave(2), 2)
    assert points[:3].tolist() == [[0.5] * 4, [1, 1, 0, 0], [0, 0, 1, 1]]
    assert points.abs().max() <= 1 and len(points.unique(dim=0)) == 6
    around_regmean = initial_population(6, *box_of(2, regressed=True), 2)
    assert around_regmean[0].tolist() == [1, 1]
    assert not bool((around_regmean[1:] == 1).all(1).any())


@pytest.mark.parametrize("name", MULTI_OBJECTIVE)
def test_evox_has_every_algorithm_and_wrong_arguments_are_refused(name):
    torch.manual_seed(0)
    algorithm = make_multi_objective(name, 12, 2, box_of(3, regressed=False), 3, {})
    assert algorithm.pop.shape == (12, 3) and algorithm.pop[0].tolist() == pytest.approx(
        [1 / 3] * 3
    )
    assert "lb" not in arguments_of(name)
    with pytest.raises(ValueError, match=f"pop_size of at least 4 with {name}, found 3"):
        make_multi_objective(name, 3, 2, box_of(3, regressed=False), 3, {})
    with pytest.raises(ValueError, match="alpha: expected a number above 0, found 'x'"):
        make_multi_objective("RVEA", 8, 2, box_of(3, regressed=False), 3, {"alpha": "x"})


class TwoPeaks(Problem):
    """As near as possible to two experts; merges with a large first coefficient fail."""

    def __init__(self, failed):
        super().__init__()
        self.failed, self.seen = failed, []

    def evaluate(self, pop):
        self.seen.append(pop)
        scores = 1 - torch.cdist(pop, torch.eye(2)[:, : pop.shape[1]]) / 10
        scores[pop[:, 0] > 0.4] = self.failed
        return scores


STEPPED = [(name, -1e6) for name in MULTI_OBJECTIVE if name != "NSGA3"]
COMPILED = pytest.param("NSGA3", -1e6, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "failed"), [*STEPPED, COMPILED, ("RVEA", -1.0), ("RVEAa", -1.0)])
def test_every_algorithm_makes_steps_and_failed_merges_leave_it_finite(name, failed):
    torch.manual_seed(0)
    problem = TwoPeaks(failed)
    lb, ub = box_of(2, regressed=False)
    algorithm = make_multi_objective(name, 12, 2, (lb, ub), 2, {})
    workflow = StdWorkflow(algorithm, problem, opt_direction=["max", "max"])
    workflow.init_step()
    for _ in range(11):  # after ten, RVEA scales its reference vectors
        workflow.step()
    points = torch.cat(problem.seen)
    assert points.isfinite().all() and (points >= lb).all() and (points <= ub).all()
    assert len(points.unique(dim=0)) > 30
    last = algorithm.fit[algorithm.fit.isfinite().all(1)]  # RVEA marks empty places by NaN
    assert len(last) > 2 and (last.max(1).values < 0).any()
    assert getattr(algorithm, "reference_vector", lb).isfinite().all()


@pytest.mark.parametrize(("pop_size", "n_tasks", "taken"), [(10, 2, 10), (14, 3, 10)])
def test_moead_is_refused_with_fewer_points_than_it_can_cross(pop_size, n_tasks, taken):
    """With three tasks it takes as many points as a simplex lattice has: 10, then 15."""
    message = f"takes at least 11, found {pop_size}, of which it takes {taken} with {n_tasks} tasks"
    with pytest.raises(ValueError, match=message):
        make_multi_objective("MOEAD", pop_size, n_tasks, box_of(3, regressed=False), 3, {})
