"""Model Swarms beside a step worked out by hand, and beside a plain loop over particles."""

import pytest
import torch
from bowls import bowl, box, evaluated_points

from evox_evogm.baselines import ModelSwarms


def test_a_step_by_hand(monkeypatch):
    # (1, 0) is the global best and (0, 1) the worst; first velocities lead from each to the other.
    algorithm = ModelSwarms(2, *box(2, torch.float64))
    monkeypatch.setattr(torch, "rand", lambda *shape, **kind: torch.full(shape, 0.5, **kind))
    points = evaluated_points(algorithm, 1)
    assert points[0].tolist() == [[1, 0], [0, 1]]
    # The better: 0.4 (-1, 1) + 0.3 (0, 0) + 0.3 (0, 0) + 0.3 (1, -1), by the sum of weights 1.3.
    better = [1 - 0.1 / 1.3, 0.1 / 1.3]
    # The worse: 0.4 (1, -1) + 0.3 (0, 0) + 0.3 (1, -1) + 0.3 (0, 0).
    worse = [0.7 / 1.3, 1 - 0.7 / 1.3]
    torch.testing.assert_close(points[1], torch.tensor([better, worse], dtype=torch.float64))
    assert float(algorithm.step_length) == 0.95


@pytest.mark.parametrize("patience", [10, 3])
def test_it_equals_a_plain_loop(patience):
    n, steps = 3, 12
    torch.manual_seed(8)
    algorithm = ModelSwarms(n, *box(n, torch.float64), patience=patience, step_length_factor=0.7)
    points = evaluated_points(algorithm, steps)

    torch.manual_seed(8)
    x = list(torch.eye(n, dtype=torch.float64))
    offsets = torch.randint(1, n, (n,)).tolist()
    v = [x[(i + offsets[i]) % n] - x[i] for i in range(n)]
    personal_best = list(x)
    global_best = min(x, key=bowl)
    global_worst = max(x, key=bowl)
    age = [0] * n
    length = 1.0
    restarts = 0
    weights = torch.tensor([0.4, 0.3, 0.3, 0.3], dtype=torch.float64)
    for step in range(1, steps + 1):
        draws = torch.rand(4, n, 1, dtype=torch.float64)
        for i in range(n):
            if age[i] >= patience / 2:
                x[i] = personal_best[i]
                v[i] = torch.zeros(n, dtype=torch.float64)
                restarts += 1
            a, b, c, d = draws[:, i, 0] * weights
            pulls = a * v[i] + b * (personal_best[i] - x[i])
            pulls = pulls + c * (global_best - x[i]) + d * (x[i] - global_worst)
            v[i] = pulls / (a + b + c + d)
            x[i] = x[i] + length * v[i]
        length = max(0.1, 0.7 * length)
        torch.testing.assert_close(points[step], torch.stack(x))
        for i in range(n):
            age[i] = 0 if bowl(x[i]) < bowl(personal_best[i]) else age[i] + 1
            personal_best[i] = min(personal_best[i], x[i], key=bowl)
            global_best = min(global_best, x[i], key=bowl)
            global_worst = max(global_worst, x[i], key=bowl)
    assert length == 0.1
    assert restarts > 0


def test_a_larger_swarm_is_filled_by_interpolations_of_two_experts():
    swarm = ModelSwarms(40, *box(4)).pop
    assert torch.equal(swarm[:4], torch.eye(4))
    torch.testing.assert_close(swarm.sum(1), torch.ones(40))
    assert ((swarm[4:] > 0).sum(1) == 2).all()


def test_in_a_smaller_swarm_the_first_experts_take_part():
    assert torch.equal(ModelSwarms(3, *box(4)).pop, torch.eye(4)[:3])
