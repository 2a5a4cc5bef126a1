"""Clocks wait for the device that works, which need not be the current one."""

import time

import pytest
import torch

from evox_evogm.problems import cost_model
from evox_evogm.problems.inference.device_clock import clock_of

SECOND = torch.device("cuda:1")


@pytest.fixture
def waits(monkeypatch):
    """The devices that were waited for; None is the current one."""
    devices = []
    monkeypatch.setattr(
        torch.accelerator, "synchronize", lambda device=None: devices.append(device)
    )
    return devices


def test_a_clock_waits_for_its_own_device(waits):
    seconds = clock_of(SECOND)
    assert waits == []
    before = time.perf_counter()
    assert before <= seconds() <= time.perf_counter()
    assert waits == [SECOND]


def test_rates_are_measured_on_the_own_device(waits):
    cost_model._seconds_of(lambda: None, SECOND)
    assert set(waits) == {SECOND} and len(waits) % 2 == 0


def test_a_cpu_is_not_waited_for(waits):
    clock_of(torch.device("cpu"))()
    assert waits == []
