"""The interpolation and the slice, against plain linear algebra."""

import numpy as np
import pytest
import torch

from evox_evogm.command.html_report import landscape
from evox_evogm.command.html_report.landscape import different, interpolate, slice_through


@pytest.fixture
def fit(data):
    points, outcomes = data
    return interpolate(points, outcomes[:, 0])


def matern52(distance):
    scaled = 5**0.5 * distance
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


def kernel(fit, one, other):
    distance = np.linalg.norm(one[:, None] - other[None], axis=2)
    return matern52(distance / fit.length_scale)


def test_predictions_and_held_out_ones_are_those_of_the_textbook(fit):
    points, scores = fit.points.numpy(), fit.scores.numpy()
    factor = fit.factor.numpy()
    covariance = factor @ factor.T
    noise = covariance[0, 0] - 1
    assert covariance == pytest.approx(kernel(fit, points, points) + noise * np.eye(15))
    outcomes = (scores - scores.mean()) / scores.std(ddof=1)
    new = np.array([[0.1, -0.2, 0.3], [5.0, 5.0, 5.0]])
    across = kernel(fit, new, points)
    mean = across @ np.linalg.solve(covariance, outcomes)
    variance = 1 - np.einsum("cn,nc->c", across, np.linalg.solve(covariance, across.T))
    predicted, doubt = fit.predict(torch.from_numpy(new))
    assert predicted.numpy() == pytest.approx(mean * scores.std(ddof=1) + scores.mean())
    assert doubt.numpy() == pytest.approx(np.sqrt(variance), abs=1e-6)
    assert doubt[1] > 0.9
    for left_out in range(15):  # fitted again without each point
        rest = [place for place in range(15) if place != left_out]
        weights = np.linalg.solve(covariance[np.ix_(rest, rest)], outcomes[rest])
        expected = covariance[left_out, rest] @ weights
        held_out = expected * scores.std(ddof=1) + scores.mean()
        assert float(fit.held_out[left_out]) == pytest.approx(held_out)


def test_explained_is_the_share_of_the_variance(fit):
    left = ((fit.scores - fit.held_out) ** 2).mean() / fit.scores.var(unbiased=False)
    assert fit.explained == pytest.approx(1 - float(left))
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert interpolate(points, points.sum(1)).explained > 0.95


def test_merges_without_a_score_and_repeated_ones_are_left_out():
    points = torch.tensor([[0.0, 1], [0, 1], [1, 1], [2, 1]], dtype=torch.float64)
    scores = torch.tensor([1.0, 9, torch.nan, 3], dtype=torch.float64)
    kept, known = different(points, scores)
    assert kept.tolist() == [[0, 1], [2, 1]] and known.tolist() == [1, 3]


def test_nothing_is_interpolated_from_few_merges_or_equal_scores(data):
    points, outcomes = data
    assert interpolate(points[:5], outcomes[:5, 0]) is None
    assert interpolate(points, torch.ones(15, dtype=torch.float64)) is None


def test_of_very_many_merges_the_best_are_kept(monkeypatch):
    monkeypatch.setattr(landscape, "MOST_POINTS", 20)
    points = torch.rand(50, 3, dtype=torch.float64)
    scores = points.sum(1)
    fit = interpolate(points, scores)
    assert len(fit.points) == 20
    assert set(scores.topk(10).values.tolist()) <= set(fit.scores.tolist())
    assert float(scores.min()) in fit.scores.tolist()


def test_the_slice_goes_through_the_merge_along_the_plane_of_the_good_merges():
    generator = torch.Generator().manual_seed(1)
    merge = torch.tensor([0.5, -0.5, 0.25, 1.0], dtype=torch.float64)
    plane = torch.tensor([[0.6, 0.8, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
    inside = torch.randn(10, 2, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 1])
    good = merge + inside @ plane
    bad = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    points = torch.cat([good, bad])
    scores = torch.cat([torch.ones(10), torch.zeros(20)]).double()
    found = slice_through(points, scores, merge)
    assert found.share == pytest.approx(1)
    assert found.distance(good) == pytest.approx(torch.zeros(10), abs=1e-12)
    assert found.distance(bad).min() > 0.01
    assert found.place(merge[None]).tolist() == [[0, 0]]
    assert found.point(found.place(good)) == pytest.approx(good)
    assert found.axes.norm(dim=1) == pytest.approx(torch.ones(2))


def test_with_two_coefficients_the_slice_has_these_as_its_axes(data):
    points, outcomes = data
    merge = torch.tensor([0.3, 0.4], dtype=torch.float64)
    found = slice_through(points[:, :2], outcomes[:, 0], merge)
    assert found.place(merge[None]).tolist() == [[0.3, 0.4]] and found.share == 1
