"""The history of a round, on points small enough to follow by hand."""

import torch

from evox_evogm.algorithms.archive import (
    append,
    draw_losers,
    empty,
    start_next_round,
    winner_count,
)


def three_points():
    archive = empty(5, 2, torch.float32, torch.device("cpu"))
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    return append(archive, points, torch.tensor([3.0, 1.0, 2.0]))


def test_rows_are_kept_sorted_with_the_best_first_and_unused_rows_last():
    archive = three_points()
    assert archive.points[:3].tolist() == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    assert archive.fitness.tolist() == [1.0, 2.0, 3.0, float("inf"), float("inf")]
    assert archive.count == 3


def test_of_equal_rows_the_older_comes_first():
    archive = append(three_points(), torch.tensor([[9.0, 9.0]]), torch.tensor([1.0]))
    assert archive.points[:2].tolist() == [[0.0, 1.0], [9.0, 9.0]]


def test_a_full_archive_drops_its_worst_rows():
    new = torch.tensor([[7.0, 7.0], [8.0, 8.0], [9.0, 9.0]])
    archive = append(three_points(), new, torch.tensor([0.5, 2.5, 9.0]))
    assert archive.fitness.tolist() == [0.5, 1.0, 2.0, 2.5, 3.0]
    assert archive.count == 5


def test_nan_and_infinite_fitness_are_worse_than_any_number_but_count_as_evaluated():
    new = torch.tensor([[4.0, 4.0], [5.0, 5.0]])
    for bad in (float("nan"), float("inf"), float("-inf")):
        archive = append(three_points(), new, torch.tensor([bad, 1e30]))
        assert archive.points[3:].tolist() == [[5.0, 5.0], [4.0, 4.0]]
        assert archive.count == 5
        assert torch.isfinite(archive.fitness).all()


def test_winners_are_the_floor_of_their_share_and_at_least_one():
    ratio = torch.tensor(0.3)
    expected = {1: 1, 3: 1, 6: 1, 7: 2, 10: 3, 20: 6, 40: 12, 90: 27}
    assert {rows: int(winner_count(torch.tensor(rows), ratio)) for rows in expected} == expected
    assert (
        int(winner_count(torch.tensor(10), torch.tensor(0.7))) == 7
    )  # 0.7 * 10 is 6.9999999 in float32


def test_losers_are_drawn_from_all_rows_behind_the_winners():
    draws = torch.tensor([0.0, 0.49, 0.5, 0.99])
    rows = draw_losers(draws, torch.tensor(1), torch.tensor(3))
    assert rows.tolist() == [1, 1, 2, 2]


def test_where_every_row_is_a_winner_the_last_one_stands_for_the_losers():
    assert draw_losers(torch.tensor([0.0, 0.9]), torch.tensor(3), torch.tensor(3)).tolist() == [
        2,
        2,
    ]


def test_a_new_round_starts_with_one_hots_that_have_the_fitness_of_the_best_rows():
    archive = start_next_round(three_points(), 2)
    assert archive.points[:2].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert archive.fitness.tolist() == [1.0, 2.0, *[float("inf")] * 3]
    assert archive.count == 2
