"""Which of the recommended point and the evaluated ones is taken."""

import torch

from evox_evogm import Outcomes, SurrogateSettings
from evox_evogm.algorithms.recommendation import better_of

DEFAULT = SurrogateSettings()


def test_an_evaluated_point_is_taken_if_it_turned_out_better_than_the_recommended_one():
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    as_it_is = Outcomes(torch.tensor([1.0]), torch.tensor([False]))
    history = torch.tensor([[3.0, 3.0], [2.0, 2.0]])
    point = torch.tensor([0.5, 0.5])

    def chosen(fitness, outcomes=as_it_is):
        fitness = torch.tensor([fitness, fitness])
        return better_of(point, fitness, points, history, outcomes, DEFAULT).tolist()

    assert chosen(1.0) == [0.5, 0.5]
    assert chosen(2.5) == [1.0, 1.0]
    assert chosen(torch.nan) == [1.0, 1.0]


def test_by_sign_the_better_point_is_the_one_that_is_right_with_more_to_spare():
    """All three right by a hair, or one wrong by a hair and two right by far."""
    outcomes = Outcomes(torch.full((3,), 1 / 3), torch.ones(3, dtype=torch.bool))
    hair = torch.tensor([0.0, -0.01, -0.01, -0.01])  # minimised: right below 0
    history = torch.tensor([[1 / 3, 0.01, -3.0, -3.0], [1.0, 3.0, 3.0, 3.0]])
    points = torch.tensor([[1.0, 1.0], [0.5, 0.5]])
    found = better_of(torch.zeros(2), hair, points, history, outcomes, DEFAULT)
    assert found.tolist() == [1.0, 1.0]
