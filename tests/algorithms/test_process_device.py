"""The process runs on the device of the search where that has float64, and finds the same there."""

import pytest
import torch
from evox.core import Problem
from evox.workflows import StdWorkflow
from pretend_device import pretend_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from evox_evogm import GradientSearch, Outcomes, SurrogateEvoGM, SurrogateSettings
from evox_evogm.algorithms import gaussian_process, process_device, training
from evox_evogm.algorithms.surrogate import Surrogate

S, N = 7, 2
CPU = torch.device("cpu")
FEW = SurrogateSettings(
    candidate_rounds=2,
    gaussian_candidates=30,
    crossover_candidates=20,
    perturbations=3,
    local_search_steps=1,
)


@pytest.fixture
def pretend(monkeypatch):
    monkeypatch.setattr(gaussian_process, "FIT_STEPS", 3)
    process_device.process_device.cache_clear()
    with pretend_accelerator() as device:
        yield device
    process_device.process_device.cache_clear()


class Margins(Problem):
    """Distances to S lines, of which those above 0 count; the last counts as it is."""

    def evaluate(self, pop):
        turns = torch.linspace(0, 3, S, device=pop.device, dtype=pop.dtype)
        margins = pop @ torch.stack([turns.cos(), turns.sin()]) - 0.3  # (P, S)
        fitness = (margins[:, :-1] > 0).to(pop.dtype).mean(1) + margins[:, -1]
        return torch.cat([fitness[:, None], margins], 1)


def run(device):
    """The recommended point and the evaluated ones of a search with outcomes."""
    torch.manual_seed(5)
    ones = torch.ones(N, device=device)
    by_sign = torch.arange(S, device=device) < S - 1
    weights = torch.where(by_sign, 1 / (S - 1), 1.0)
    options = {"settings": FEW, "device": device}
    search = SurrogateEvoGM(3, -ones, ones, outcomes=Outcomes(weights, by_sign), **options)
    workflow = StdWorkflow(search, Margins(), device=device)
    workflow.init_step()
    for _ in range(2):
        workflow.step()
    search = workflow.algorithm
    gain = search.recent_gain(search.points[:9], search._fitness_with_outcomes()[:9], 3)
    return search.recommend(), search.points[:9], gain


def devices_of_processes(monkeypatch):
    """The devices of the points of all processes that are fitted from now on."""
    found, make = [], Surrogate.__init__

    def noting(surrogate, points, *rest, **named):
        found.append(points.device)
        make(surrogate, points, *rest, **named)

    monkeypatch.setattr(Surrogate, "__init__", noting)
    return found


def test_a_process_on_the_device_chooses_the_points_of_one_on_the_cpu(pretend, monkeypatch):
    expected = run(CPU)
    devices = devices_of_processes(monkeypatch)
    point, points, gain = run(pretend)
    assert set(devices) == {pretend} and point.device == points.device == pretend
    torch.testing.assert_close(point.cpu(), expected[0])
    torch.testing.assert_close(points.cpu(), expected[1])
    assert gain == pytest.approx(expected[2], abs=1e-6)


def test_without_float64_it_runs_on_the_cpu(pretend, monkeypatch):
    eye = torch.eye

    def refuse(*sizes, dtype=None, device=None, **named):
        if dtype == torch.float64 and device == pretend:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return eye(*sizes, dtype=dtype, device=device, **named)

    monkeypatch.setattr(torch, "eye", refuse)
    devices = devices_of_processes(monkeypatch)
    point, _, _ = run(pretend)
    assert set(devices) == {CPU} and point.device == pretend


def count_operators(device, runs):
    """The operators of training the generators of so many runs for three epochs."""
    count = 0

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            nonlocal count
            count += 1
            return operator(*args, **(kwargs or {}))

    sizes = [N, 4, N]
    parameters = training.initial_parameters(sizes, 2, torch.float32, device).expand(runs, 2, -1)
    points = torch.rand(runs, 8, N, device=device)
    settings = torch.tensor([1e-3, 0.5, 1.0, 1.0], device=device).expand(runs, 4)
    arguments = (
        parameters,
        torch.zeros(runs, 2, *parameters.shape[1:], device=device),
        torch.zeros(runs, dtype=torch.int64, device=device),
        points,
        torch.full((runs,), 8, device=device),
        torch.rand(runs, 3, 8, device=device),
        settings,
        torch.zeros(runs, dtype=torch.int64, device=device),
    )
    with Counter():
        training.train.run_many(*arguments, sizes)
    return count


def test_the_generators_of_64_runs_train_together_on_a_device(pretend):
    assert count_operators(pretend, 64) == count_operators(pretend, 2)


def test_gradient_search_takes_a_history_of_the_cpu_as_monitors_keep_it(pretend):
    search = GradientSearch(torch.zeros(N, device=pretend), device=pretend)
    fitness = torch.tensor([4.0, 3.0, 2.0, 0.0])[:, None]
    assert search.recent_gain(torch.zeros(4, N), fitness, 2) == pytest.approx(2.5)  # 3.5 - 1
