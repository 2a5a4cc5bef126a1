"""How far a search goes: whole steps, the recommended merge, time, and pruning."""

import pytest
import torch

from evox_evogm import GradientSearch, SurrogateEvoGM
from evox_evogm.algorithms.evogm import EvoGM
from evox_evogm.command.search_limit import SearchLimit
from evox_evogm.command.settings import parse_settings

NEEDED = {"base": "b", "experts": "e", "tasks": [{"json_lines": "d", "test_file": "t"}]}


def limit_of(algorithm, **settings):
    """The limit of a search over two coefficients."""
    box = torch.ones(2)
    if algorithm == "SurrogateEvoGM":
        search = SurrogateEvoGM(3, -box, box)
    elif algorithm == "EvoGM":
        search = EvoGM(4, -box, box)
    else:
        search = GradientSearch(box)
    table = {**NEEDED, "algorithm": algorithm, **settings}
    return SearchLimit(parse_settings(table, "settings"), search)


@pytest.mark.parametrize(
    ("algorithm", "given", "made", "words"),
    [
        # 19 x 3 + 1; 15 x 4; 19 x 3 + 3; 1 x 3, without room for another.
        (
            "SurrogateEvoGM",
            60,
            58,
            "19 populations of 3 merges evaluated together, and the recommended one",
        ),
        ("EvoGM", 63, 60, "15 populations of 4 merges evaluated together"),
        (
            "GradientSearch",
            62,
            60,
            "19 populations of 1 merge with gradients, each counted as 3, and the recommended one",
        ),
        ("SurrogateEvoGM", 3, 3, "1 population of 3 merges evaluated together"),
    ],
)
def test_a_budget_is_cut_to_whole_steps_and_the_recommended_merge(algorithm, given, made, words):
    limit = limit_of(algorithm, budget=given)
    assert limit.budget.evaluations == made
    assert limit.words() == [f"budget {given}: {made} evaluations, {words}"]
    last = made - limit.kept - limit.step_cost  # before the last step
    assert limit.has_room(last, seconds=1e9)
    assert not limit.has_room(last + 1, seconds=0.0)


def test_minibatches_use_all_of_a_budget():
    """21 steps of 3/7 are 9 evaluations, up to rounding."""
    limit = limit_of("GradientSearch", budget=10, minibatches=7)
    cost = 3 / 7
    assert limit.kept == 0 and limit.step_cost == cost
    (words,) = limit.words()
    assert words == (
        "budget 10: 10 evaluations, 23 populations of 1 merge with gradients, each counted as "
        "0.429, on one of 7 minibatches"
    )
    assert limit.has_room(sum([cost] * 22), 0.0) and not limit.has_room(sum([cost] * 23), 0.0)
    assert limit_of("GradientSearch", budget=9, minibatches=7).has_room(sum([cost] * 20), 0.0)


def test_a_time_is_not_cut():
    limit = limit_of("SurrogateEvoGM", budget="20min")
    assert (limit.budget.evaluations, limit.budget.seconds, limit.words()) == (None, 1200, [])
    assert limit.has_room(1e9, seconds=1199.0) and not limit.has_room(0, seconds=1200.0)


def test_pruning_leaves_the_number_of_steps_open():
    limit = limit_of("SurrogateEvoGM", budget=60, racing=True)
    assert (limit.budget.evaluations, limit.words()) == (60, [])
    assert limit.has_room(56, seconds=0.0) and not limit.has_room(56.5, seconds=0.0)
