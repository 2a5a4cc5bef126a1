"""Searches with an objective for each task: their first population, and the front."""

import itertools

import pytest
import torch

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
    algorithm = make_multi_objective(name, 8, 2, box_of(3, regressed=False), 3, {})
    assert algorithm.pop.shape == (8, 3) and algorithm.pop[0].tolist() == pytest.approx([1 / 3] * 3)
    assert "lb" not in arguments_of(name)
    with pytest.raises(ValueError, match=f"pop_size of at least 4 with {name}, found 3"):
        make_multi_objective(name, 3, 2, box_of(3, regressed=False), 3, {})
    with pytest.raises(ValueError, match="alpha: expected a number above 0, found 'x'"):
        make_multi_objective("RVEA", 8, 2, box_of(3, regressed=False), 3, {"alpha": "x"})
