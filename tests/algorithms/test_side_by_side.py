"""Runs in threads give what they give one after another."""

import threading
import time

import pytest
import torch
from pretend_device import pretend_accelerator

from evox_evogm import SurrogateSettings
from evox_evogm.algorithms import acquisition
from evox_evogm.algorithms.acquisition import select_batch, select_for_one_run, settings_number
from evox_evogm.algorithms.side_by_side import MAX_THREADS, side_by_side

FEW = SurrogateSettings(gaussian_candidates=60, crossover_candidates=40, candidate_rounds=2)
RUNS = [(torch.tensor(float(number)),) for number in range(6)]


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def histories(runs, rows=18, n=4, outcomes=7):
    """The tensors of `select_batch` for some runs with histories of different lengths.

    The outcomes count by their sign, but for the last.
    """
    generator = torch.Generator().manual_seed(1)
    points = 2 * torch.rand(runs, rows, n, generator=generator) - 1
    fitness = torch.randn(runs, rows, 1 + outcomes, generator=generator)
    bounds = torch.tensor([-1.0, 1.0])[:, None].expand(runs, 2, n)
    weights = torch.full((runs, outcomes), 1 / outcomes)
    by_sign = (torch.arange(outcomes) < outcomes - 1).expand(runs, outcomes)
    groups = torch.zeros(runs, outcomes, dtype=torch.int64)
    count = rows - torch.arange(runs) % 3
    return points, fitness, count, bounds, weights, by_sign, groups, torch.arange(runs)


@pytest.mark.parametrize(
    ("runs", "shape", "settings"),
    [
        (5, (18, 4, 7), FEW),
        pytest.param(16, (160, 20, 169), SurrogateSettings(), marks=pytest.mark.slow),
    ],
)
def test_vmapped_choices_are_those_of_one_run_after_another_bit_for_bit(runs, shape, settings):
    tensors = histories(runs, *shape)
    settings = 3, tensors[0].shape[2], settings_number(settings)
    expected = []
    torch.set_num_threads(1)
    for run in range(runs):
        expected.append(select_batch(*[tensor[run] for tensor in tensors], *settings))
    torch.set_num_threads(3)
    found = torch.vmap(lambda *tensors: select_batch(*tensors, *settings))(*tensors)
    assert torch.equal(found, torch.stack(expected))
    assert len(found.unique(dim=0)) == runs


def test_a_run_without_history_among_others_is_refused_as_alone():
    tensors = histories(5)
    tensors[2][3] = 0
    settings = 3, tensors[0].shape[2], settings_number(FEW)
    with pytest.raises(ValueError, match="expected evaluated points, found none"):
        torch.vmap(lambda *tensors: select_batch(*tensors, *settings))(*tensors)


def test_runs_meet_in_three_threads_of_one_torch_thread_each():
    everyone = threading.Barrier(3)  # nobody goes on before three runs are here

    def meet(number):
        everyone.wait(timeout=20)
        assert torch.get_num_threads() == 1
        return number + 1

    assert torch.stack(side_by_side(meet, RUNS)).tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.get_num_threads() == 3 == threads_of_a_new_thread()


def test_there_are_at_most_so_many_threads():
    torch.set_num_threads(MAX_THREADS + 3)
    seen = set()

    def note(number):
        seen.add(threading.get_ident())
        time.sleep(0.01)  # so that the next run finds nobody idle
        return number

    side_by_side(note, RUNS * 10)
    assert len(seen) == MAX_THREADS


@pytest.mark.parametrize("case", ["one run", "one thread"])
def test_otherwise_runs_stay_in_the_thread_of_the_caller(case):
    def thread(number):
        return torch.tensor(threading.get_ident())

    runs = RUNS[:1] if case == "one run" else RUNS
    if case == "one thread":
        torch.set_num_threads(1)
    found = side_by_side(thread, runs)
    assert [int(ident) for ident in found] == [threading.get_ident()] * len(runs)


@pytest.mark.parametrize("in_float64", [True, False])
def test_vmapped_runs_on_an_accelerator_choose_there_or_in_threads_of_the_cpu(
    monkeypatch, in_float64
):
    threads = set()
    if not in_float64:
        monkeypatch.setattr(acquisition, "process_device", lambda _: torch.device("cpu"))

    def noted(*run, **settings):
        threads.add(threading.get_ident())
        return select_for_one_run(*run, **settings)

    monkeypatch.setattr(acquisition, "select_for_one_run", noted)
    tensors = histories(5)
    settings = 3, tensors[0].shape[2], settings_number(FEW)
    choose = torch.vmap(lambda *tensors: select_batch(*tensors, *settings))
    expected = choose(*tensors)
    threads.clear()
    with pretend_accelerator() as device:
        found = choose(*[tensor.to(device) for tensor in tensors])
        assert found.device.type == device.type
        assert torch.equal(found.cpu(), expected)
    if in_float64:
        assert threads == {threading.get_ident()}  # whose stream the device computes in
    else:
        assert len(threads) > 1 and threading.get_ident() not in threads


def test_the_error_is_that_of_the_first_run_that_fails_and_threads_are_as_before():
    second_failed = threading.Event()

    def fail(number):
        if number == 2:
            second_failed.set()
            raise ValueError("run 2")
        if number == 1:
            assert second_failed.wait(timeout=20)
            raise ValueError("run 1")
        return number

    with pytest.raises(ValueError, match="run 1"):
        side_by_side(fail, RUNS)
    assert torch.get_num_threads() == 3 == threads_of_a_new_thread()


def test_runs_inside_runs_end():
    def inner(number):
        return torch.stack(side_by_side(lambda other: number * other, RUNS))

    products = torch.stack(side_by_side(inner, RUNS))
    numbers = torch.arange(6.0)
    assert torch.equal(products, torch.outer(numbers, numbers))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_a_run_has_the_inference_mode_of_the_caller_and_no_autograd(mode):
    weight = torch.ones((), requires_grad=True)
    with mode():
        results = side_by_side(lambda number: number * weight, RUNS)
        expected = torch.is_inference_mode_enabled()
    assert [result.is_inference() for result in results] == [expected] * 6
    assert not any(result.requires_grad for result in results)
