"""The Gaussian process against its plain formulas."""

import math

import pytest
import torch

from evox_evogm.algorithms import gaussian_process
from evox_evogm.algorithms.gaussian_process import (
    MATERN32,
    MATERN52,
    NOISE_FLOOR,
    RBF,
    Block,
    GaussianProcess,
    Prior,
    moments,
    negative_log_posterior,
)


def plain_covariance(first, second, logarithms):
    """Matern 5/2 element by element."""
    scales, variance = logarithms[:-2].exp().tolist(), math.exp(logarithms[-2])
    rows = []
    for x in first.tolist():
        squares = [
            sum(((a - b) / s) ** 2 for a, b, s in zip(x, y, scales, strict=True))
            for y in second.tolist()
        ]
        rows.append(
            [
                variance * (1 + math.sqrt(5 * d) + 5 * d / 3) * math.exp(-math.sqrt(5 * d))
                for d in squares
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)


def test_the_posterior_of_hyper_parameters_is_a_normal_distribution_times_the_prior(
    data,
):
    points, outcomes = data
    logarithms = torch.tensor([0.1, -0.4, 0.8, 0.2, -3.0], dtype=torch.float64)
    covariance = plain_covariance(points, points, logarithms)
    covariance += (math.exp(-3.0) + NOISE_FLOOR) * torch.eye(len(points), dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(points)).double(), covariance)
    evidence = -normal.log_prob(outcomes.T).sum() - outcomes.numel() * math.log(2 * math.pi) / 2
    typical = math.log(0.3 * math.sqrt(3))
    prior = (
        ((logarithms[:3] - typical) ** 2).sum() / 2 + 0.2**2 / 2 + (-3.0 - math.log(0.01)) ** 2 / 8
    )
    assert torch.allclose(
        negative_log_posterior(logarithms, [moments(Block(points, outcomes))])[0], evidence + prior
    )


def test_its_gradient_is_that_of_finite_differences(data):
    points, outcomes = data
    logarithms = torch.tensor([0.1, -0.4, 0.8, 0.2, -3.0], dtype=torch.float64)
    steps = 1e-5 * torch.eye(5, dtype=torch.float64)
    values = [
        [
            negative_log_posterior(logarithms + sign * step, [moments(Block(points, outcomes))])[0]
            for sign in (1, -1)
        ]
        for step in steps
    ]
    expected = torch.tensor(
        [(above - below) / 2e-5 for above, below in values], dtype=torch.float64
    )
    assert torch.allclose(
        negative_log_posterior(logarithms, [moments(Block(points, outcomes))])[1],
        expected,
        atol=1e-6,
    )


def test_hyper_parameters_are_the_best_that_were_seen_when_the_search_for_them_breaks_down(
    data, monkeypatch
):
    """In a case of twenty experts a factor failed in a line search, and the process forgot what it
    had found.
    """
    seen = []

    def breaks_down(logarithms, *arguments):
        value, gradient = negative_log_posterior(logarithms, *arguments)
        if len(seen) == 5:
            return value * torch.nan, gradient * torch.nan
        seen.append((float(value), logarithms.detach().clone()))
        return value, gradient

    monkeypatch.setattr(gaussian_process, "negative_log_posterior", breaks_down)
    process = GaussianProcess(*data)
    _, best = min(seen, key=lambda pair: pair[0])
    assert len(seen) == 5 and not torch.equal(best, seen[0][1])
    assert torch.equal(process.length_scales, best[:3].exp()) and torch.equal(
        process.variance, best.exp()[3]
    )


def test_ten_evaluations_are_not_taken_for_noise_as_with_long_length_scales():
    """Of forty waves, about as long as margins of merges are, at ten points in ten dimensions."""
    generator = torch.Generator().manual_seed(0)
    points = 0.1 + 0.16 * torch.randn(10, 10, generator=generator, dtype=torch.float64)
    waves = torch.cos(
        points @ torch.randn(10, 40, generator=generator).double()
        + 6 * torch.rand(40, generator=generator)
    )
    assert GaussianProcess(points, waves).noise < 0.1
    long = Prior(2 * math.exp(math.sqrt(2)), 3.0)  # of Hvarfner et al., in half widths
    assert GaussianProcess(points, waves, prior=long).noise > 0.5  # of a variance of 1


@pytest.mark.parametrize("kernel", [MATERN52, MATERN32, RBF])
def test_a_kernel_has_the_slope_of_its_correlation(kernel):
    distance = torch.linspace(0.01, 3, 50, dtype=torch.float64)
    above, below = kernel.correlation(distance + 1e-6), kernel.correlation(distance - 1e-6)
    derivative = (above - below) / 2e-6
    torch.testing.assert_close(kernel.slope(distance), -derivative / distance, rtol=0, atol=1e-6)


def test_the_posterior_is_the_textbooks(data):
    points, outcomes = data
    process = GaussianProcess(points, outcomes)
    candidates = torch.tensor([[0.1, 0.2, -0.3], [0.9, -0.9, 0.0]], dtype=torch.float64)
    logarithms = torch.cat(
        [process.length_scales, process.variance[None], process.noise[None]]
    ).log()
    inverse = torch.linalg.inv(
        plain_covariance(points, points, logarithms)
        + process.noise * torch.eye(len(points), dtype=torch.float64)
    )
    cross = plain_covariance(candidates, points, logarithms)
    standard = (outcomes - outcomes.mean(0)) / outcomes.std(0, correction=0)
    found = process.posterior(candidates)
    assert torch.allclose(
        found.means, outcomes.mean(0) + outcomes.std(0, correction=0) * (cross @ inverse @ standard)
    )
    assert torch.allclose(
        found.variance, process.variance - (cross @ inverse * cross).sum(1)[:, None], atol=1e-9
    )


def test_outcomes_that_were_not_observed_are_left_out(data):
    """Two outcomes of all points, one of the first nine: it is predicted from those, the others as
    if it were not there.
    """
    points, outcomes = data
    partial = outcomes.clone()
    partial[9:, 1] = torch.nan
    process = GaussianProcess(points, partial)
    candidates = torch.tensor([[0.1, 0.2, -0.3], [0.9, -0.9, 0.0]], dtype=torch.float64)
    logarithms = torch.cat(
        [process.length_scales, process.variance[None], process.noise[None]]
    ).log()
    found = process.posterior(candidates)
    for column, rows in ((0, slice(None)), (1, slice(9)), (2, slice(None))):
        known, values = points[rows], outcomes[rows, column]
        cross = plain_covariance(candidates, known, logarithms)
        noise = process.noise * torch.eye(len(known), dtype=torch.float64)
        solved = torch.linalg.solve(plain_covariance(known, known, logarithms) + noise, cross.T)
        expected = values.mean() + solved.T @ (values - values.mean())
        assert torch.allclose(found.means[:, column], expected)
        assert torch.allclose(
            found.variance[:, process.block_of[column]],
            process.variance - (cross * solved.T).sum(1),
        )
