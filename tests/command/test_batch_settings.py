"""Sizes of batches that a run chooses: written to its folder, and kept by later processes."""

import pytest
import yaml
from builders import change_settings, history, interrupt_searches, merge

from evox_evogm.command.batch_settings import batch_tokens_of, max_memory_of
from evox_evogm.command.settings import RunSettings
from evox_evogm.problems import batch_choice
from evox_evogm.problems.inference.batch_sizes import BatchSizes

pytestmark = pytest.mark.language_model

FIRST = BatchSizes(tokens=64, rows=5, pass_tokens=3, step_tokens=2)
AS_TABLE = {"tokens": 64, "rows": 5, "pass_tokens": 3, "step_tokens": 2}
OTHER = BatchSizes(tokens=4096, rows=500, pass_tokens=900, step_tokens=0)


@pytest.fixture
def measured(monkeypatch):
    """The sizes that are measured, one after the other: a clock never gives the same twice."""
    sizes = [FIRST, OTHER, OTHER]
    monkeypatch.setattr(batch_choice, "measure_batch_sizes", lambda *_, **__: sizes.pop(0))
    return sizes


def config(project, out="out"):
    return yaml.safe_load((project / out / "config.yaml").read_text())


@pytest.mark.slow
def test_a_run_goes_on_with_the_sizes_that_its_first_process_measured(
    project, measured, monkeypatch
):
    change_settings(project, budget=7, batch_tokens="auto", max_memory="auto")
    assert merge(project, out="whole") == 0
    measured.insert(0, FIRST)
    with monkeypatch.context() as first_process:
        interrupt_searches(first_process, 1)
        assert merge(project) == 130
    assert config(project)["batch_tokens"] == AS_TABLE
    memory = config(project)["max_memory"]
    assert merge(project) == 0
    assert measured == [OTHER, OTHER]  # nothing was measured again
    assert history(project / "out") == history(project / "whole")
    assert config(project)["batch_tokens"] == AS_TABLE and config(project)["max_memory"] == memory


@pytest.mark.lengthy
def test_on_a_cpu_the_sizes_are_constants_by_default(project, measured):
    change_settings(project, budget=4)
    assert merge(project) == 0
    assert len(measured) == 3
    assert config(project)["batch_tokens"] == 2048 and config(project)["max_memory"] == 2.0


def settings(**changes):
    needed = {"base": "b", "experts": "e", "tasks": [{"swarm_eval": "a.json"}]}
    return RunSettings(**needed, **changes)


@pytest.mark.parametrize(
    ("value", "argument"), [(None, None), ("auto", "auto"), (64, 64), (AS_TABLE, FIRST)]
)
def test_sizes_are_given_to_the_problem_as_they_are_written(value, argument):
    assert batch_tokens_of(settings(batch_tokens=value)) == argument


@pytest.mark.parametrize(
    ("value", "argument"), [(None, None), ("auto", "auto"), (2, 2**31), (0.5, 2**29)]
)
def test_memory_is_given_to_the_problem_in_bytes(value, argument):
    assert max_memory_of(settings(max_memory=value)) == argument
