"""What counts as the same search: settings by their values, in every process alike."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from evox.core import Algorithm
from evox.problems.numerical import Sphere
from evox.workflows import StdWorkflow

from evox_evogm import SurrogateSettings
from evox_evogm.resume.fingerprint import (
    differing,
    digest,
    fingerprint,
    outside_the_state,
    setting_as_text,
)


def square(x):
    return x * x


def double(x):
    return 2 * x


class Kernel(NamedTuple):
    function: object
    slope: object


@dataclass(frozen=True)
class Settings:
    kernel: Kernel = Kernel(square, double)
    transform: object = square
    stds: tuple = (0.1, 0.3)
    rows: int | None = None
    weights: torch.Tensor = field(default_factory=lambda: torch.ones(2))


class Configured(Algorithm):
    """Only has settings."""

    def __init__(self, settings=None, sizes=(3, 8), **others):
        super().__init__()
        self.pop_size = 4
        self.sizes = sizes
        self.dtype = torch.float32
        self.settings = Settings() if settings is None else settings
        for name, value in others.items():
            setattr(self, name, value)


def fingerprint_of(*arguments, **others):
    torch.manual_seed(0)
    return fingerprint(StdWorkflow(Configured(*arguments, **others), Sphere()))


CHANGES = {
    "a function of the kernel": {"kernel": Kernel(double, double)},
    "a function": {"transform": double},
    "arguments of a function": {"transform": partial(square, 3)},
    "a number": {"stds": (0.1, 0.2)},
    "a number instead of None": {"rows": 3},
    "a tensor": {"weights": torch.zeros(2)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_field_of_a_frozen_dataclass_counts(change):
    other = fingerprint_of(replace(Settings(), **change))
    assert differing(fingerprint_of(), other) == "'algorithm.settings'"


def test_equal_settings_have_one_fingerprint():
    same = Settings(Kernel(square, double), weights=torch.ones(2))
    assert differing(fingerprint_of(), fingerprint_of(same)) is None


def test_settings_of_the_surrogate_are_written_without_addresses():
    text = setting_as_text(SurrogateSettings())
    assert "evox_evogm.algorithms.gaussian_process.matern52_slope" in text
    assert "'gaussian_stds', builtins.tuple(0.03, 0.1, 0.3)" in text
    assert " at 0x" not in text


def test_attributes_with_an_underscore_are_derived_and_do_not_count():
    assert differing(fingerprint_of(), fingerprint_of(_number=3)) is None
    assert differing(fingerprint_of(), fingerprint_of(number=3)) == "'algorithm.number'"


def test_objects_that_tell_their_address_do_not_count():
    assert differing(fingerprint_of(), fingerprint_of(thing=object(), things=[object()])) is None


def test_digests_of_numbers_and_tensors_are_those_of_earlier_runs():
    found = fingerprint_of()
    assert found["algorithm.pop_size"] == digest(b"4") == "4b227777d4dd1fc6"
    assert found["algorithm.sizes"] == digest(b"(3, 8)") == "dd4021c6325d0dfd"
    assert digest(torch.arange(3.0)) == "d55f1c599553590d"


def test_what_a_step_changes_beside_tensors_is_seen_by_name():
    algorithm = Configured(counts=[1])
    before = outside_the_state(algorithm)
    algorithm.counts.append(2)
    assert differing(before, outside_the_state(algorithm)) == "'counts'"


def test_a_name_that_only_one_table_has_differs():
    assert differing({"x": "1"}, {"x": "1", "a": "2"}) == "'a'"
    assert differing({"x": "1"}, {"x": "1"}) is None
