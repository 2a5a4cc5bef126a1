"""Modes that are expected to be about as fast are timed, and the faster one is taken."""

import logging
from types import SimpleNamespace

import pytest
import torch
from builders import build_model, two_adapters

from evox_evogm.problems import (
    Example,
    LoRAMergeProblem,
    Task,
    batch_choice,
    cost_model,
    mode_choice,
)
from evox_evogm.problems.close_calls import is_close_call, time_modes
from evox_evogm.problems.cost_model import Rate, Rates
from evox_evogm.problems.inference.batch_sizes import BatchSizes
from evox_evogm.problems.inference.language_model import LanguageModel

pytestmark = pytest.mark.language_model

SUMS = tuple(Example(f"sum {i}", f"{i} + {i} =", str(2 * i)) for i in range(8))
GOLD = Task("gold", "1", "gold_log_probability", SUMS)


class TimedScorer:
    """Scores nothing, and takes so many seconds for each example and candidate by mode."""

    n_coefficients = 2
    language_model = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, seconds):
        self.seconds = seconds
        self.now = 0.0
        self.runs = []

    def score_here(self, pop, tasks, modes):
        (mode,) = set(modes.values())
        examples = sum(len(task.examples) for task in tasks)
        self.runs.append((mode, len(pop), examples))
        self.now += self.seconds[mode] * len(pop) * examples

    def clock(self):
        return self.now


def timed(scorer, expected, load_seconds=0.0):
    return time_modes(scorer, [GOLD], 3, expected, load_seconds, scorer.clock)


def test_both_modes_are_timed_on_the_whole_task_where_that_is_short():
    scorer = TimedScorer({"unmerged": 0.01, "merged": 0.02})
    found = timed(scorer, {"unmerged": 1.0, "merged": 1.0}, load_seconds=0.12)
    assert found == pytest.approx({"unmerged": 0.24, "merged": 0.48 - 0.12})
    assert scorer.runs == 2 * [("unmerged", 3, 8), ("merged", 3, 8)]


def test_a_part_of_the_examples_stands_for_a_long_task():
    scorer = TimedScorer({"unmerged": 1.0, "merged": 0.5})
    found = timed(scorer, {"unmerged": 8.0, "merged": 7.2})
    assert found == pytest.approx({"unmerged": 24.0, "merged": 12.0})
    assert scorer.runs[0] == ("unmerged", 3, 2)  # a quarter: 2 of 8 s


def test_what_cannot_be_timed_is_as_expected(caplog):
    scorer = TimedScorer({})
    scorer.score_here = lambda *_: torch.empty(0).view(3)
    expected = {"unmerged": 2.0, "merged": 1.5}
    with caplog.at_level(logging.WARNING):
        assert timed(scorer, expected) == expected
    assert "modes could not be timed: RuntimeError" in caplog.text


def test_a_clear_difference_is_no_close_call():
    assert is_close_call({"unmerged": 2.0, "merged": 1.5}, 0.0)
    assert not is_close_call({"unmerged": 3.0, "merged": 1.0}, 0.1)
    assert is_close_call({"unmerged": 3.0, "merged": 1.0}, 1.0)
    assert not is_close_call({"unmerged": 1.0, "merged": 2.5}, 0.0)


@pytest.mark.parametrize("batch_tokens, mode", [("auto", "merged"), (2048, "unmerged")])
def test_close_calls_are_timed_where_batches_are_measured(
    make_adapter, tokenizer, monkeypatch, batch_tokens, mode
):
    """The rates say that unmerged is a little faster, and the timing that it is not."""
    unmerged, merged = Rate(0.0, 1.0), Rate(0.0, 1.1)
    none = Rate(0.0, 0.0)
    rates = Rates(
        {"unmerged": unmerged, "merged": merged}, dict.fromkeys(cost_model.MODES, none), 0
    )
    monkeypatch.setattr(mode_choice, "measure_rates", lambda *_: rates)
    monkeypatch.setattr(batch_choice, "measure_batch_sizes", lambda *_, **__: BatchSizes())
    measured = {"unmerged": 5.0, "merged": 4.0}
    monkeypatch.setattr(mode_choice, "time_modes", lambda *_: measured)
    folders = two_adapters("llama", make_adapter)
    options = {"tokenizer": tokenizer, "batch_tokens": batch_tokens}
    problem = LoRAMergeProblem(build_model(), folders, [GOLD], **options)
    problem.choose_modes(1)
    assert problem.modes == {"gold": mode}


def test_rates_are_those_of_passes_as_large_as_batches(tokenizer, monkeypatch):
    sizes = BatchSizes(tokens=3200, rows=77, pass_tokens=10)
    for batch_tokens, prompts, steps in (
        (sizes, {4, 48, 100}, {2, 32, 77}),
        (2048, {4, 48}, {2, 32}),
    ):
        model = LanguageModel(build_model(), tokenizer, batch_tokens=batch_tokens)
        rows = []
        random_batch = cost_model._random_batch
        monkeypatch.setattr(
            cost_model,
            "_random_batch",
            lambda model, count, rows=rows, make=random_batch: rows.append(count) or make(model, 1),
        )
        monkeypatch.setattr(cost_model, "_seconds_of", lambda work, device: 1.0)
        with torch.no_grad():
            cost_model._time_prompts(model)
            assert set(rows) == prompts
            rows.clear()
            cost_model._time_steps(model)
        assert set(rows) == steps
        monkeypatch.setattr(cost_model, "_random_batch", random_batch)
