"""PSO-Merging beside steps worked out by hand, and beside a plain loop over particles."""

import torch
from bowls import bowl, box, evaluated_points

from evox_evogm.baselines import PSOMerging


def test_two_steps_by_hand(monkeypatch):
    algorithm = PSOMerging(3, *box(2, torch.float64))
    monkeypatch.setattr(torch, "rand", lambda *shape, **kind: torch.full(shape, 0.5, **kind))
    points = evaluated_points(algorithm, 2)
    # (1, 0) is best: 2 * 0.5 of the way to it from everywhere; then 0.2 of that step again.
    assert points[0].tolist() == [[0, 0], [1, 0], [0, 1]]
    assert points[1].tolist() == [[1, 0], [1, 0], [1, 0]]
    expected = torch.tensor([[1.2, 0], [1, 0], [1.2, -0.2]], dtype=torch.float64)
    torch.testing.assert_close(points[2], expected)


def test_it_equals_a_plain_loop():
    n, pop_size, steps = 2, 5, 10
    torch.manual_seed(5)
    points = evaluated_points(PSOMerging(pop_size, *box(n, torch.float64)), steps)

    torch.manual_seed(5)
    first, second = (0.5 + torch.rand(2, 1, dtype=torch.float64)).flatten().tolist()
    swarm = [[0, 0], [1, 0], [0, 1], [first, 0], [0, second]]
    x = list(torch.tensor(swarm, dtype=torch.float64))
    torch.testing.assert_close(points[0], torch.stack(x))
    v = [torch.zeros(n, dtype=torch.float64) for _ in x]
    personal_best = list(x)
    global_best = min(x, key=bowl)
    for step in range(1, steps + 1):
        draws = torch.rand(2, pop_size, 1, dtype=torch.float64)
        for i in range(pop_size):
            to_personal = draws[0, i] * (personal_best[i] - x[i])
            to_global = draws[1, i] * (global_best - x[i])
            v[i] = 0.2 * v[i] + 2 * to_personal + 2 * to_global
            x[i] = x[i] + v[i]
        torch.testing.assert_close(points[step], torch.stack(x))
        for i in range(pop_size):
            personal_best[i] = min(personal_best[i], x[i], key=bowl)
            global_best = min(global_best, x[i], key=bowl)
