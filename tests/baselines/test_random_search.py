"""Random search draws what `torch.rand` draws."""

import torch
from bowls import evaluated_points

from evox_evogm.baselines import RandomSearch, initial_population


def test_random_search_draws_from_the_box_after_the_initial_population():
    lb = torch.tensor([-1.0, 0.0, 2.0])
    ub = torch.tensor([1.0, 0.5, 4.0])
    torch.manual_seed(1)
    points = evaluated_points(RandomSearch(6, lb, ub), 3)
    torch.manual_seed(1)
    assert torch.equal(points[0], initial_population(6, lb, ub))
    for batch in points[1:]:
        assert torch.equal(batch, lb + (ub - lb) * torch.rand(6, 3))
