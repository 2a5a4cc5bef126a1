"""The sizes of batches that timed passes lead to, on a clock of the test's own."""

import pytest
import torch
from builders import build_model

from evox_evogm.problems.inference.batch_sizes import (
    BatchSizes,
    TimedPass,
    Timing,
    is_to_be_measured,
    time_passes,
)
from evox_evogm.problems.inference.batching import MemoryEstimate
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.measure_batches import WIDTH, measure_batch_sizes

pytestmark = pytest.mark.language_model

SIZES = [2**power for power in range(5, 18)]


class PretendClock:
    """A clock that stands still, except where a pass says what it took."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def timed(seconds_of, sizes=SIZES, most=float("inf")):
    """The timing of passes that take `seconds_of(size)`, and those that were run.

    :param most: the largest size that has memory.
    """
    clock, run = PretendClock(), []

    def make(size):
        def work():
            if size > most:
                raise torch.OutOfMemoryError("no room")
            run.append(size)
            clock.now += seconds_of(size)

        return work

    return time_passes(sizes, make, clock), run


def test_where_a_pass_costs_128_tokens_it_gets_2048():
    timing, _ = timed(lambda size: 1e-4 * (size + 128))
    per_pass, per_token = timing.line
    assert (per_pass, per_token) == pytest.approx((128e-4, 1e-4))
    assert timing.best_size(SIZES) == 2048


@pytest.mark.parametrize(("least", "best"), [(1000, 1024), (4096, 4096), (5000, 8192)])
def test_a_device_that_is_busy_from_some_size_on_gets_that(least, best):
    timing, run = timed(lambda size: 1e-6 * max(size, least))
    assert timing.ended and timing.best_size(SIZES) == best
    assert max(run) == 4 * best


def test_a_rate_that_grows_to_the_end_takes_the_largest_size():
    timing, _ = timed(lambda size: 1e-3)
    assert timing.best_size(SIZES) == SIZES[-1]


def test_sizes_without_memory_are_not_chosen():
    timing, run = timed(lambda size: 1e-3, most=512)
    assert max(run) == 512 and timing.best_size(SIZES) == 512


def test_no_memory_for_the_smallest_size_is_an_error():
    with pytest.raises(torch.OutOfMemoryError, match="no pass of 32 fits into memory"):
        timed(lambda size: 1e-3, most=16)


def test_a_slow_device_is_timed_for_some_seconds_and_judged_by_the_line():
    seconds = []

    def seconds_of(size):
        seconds.append(2e-3 * (size + 128))
        return seconds[-1]

    timing, run = timed(seconds_of)
    assert not timing.ended and max(run) < 2048 and sum(seconds) < 6
    assert timing.best_size(SIZES) == 2048


def test_a_short_hiccup_does_not_end_the_growth():
    timing, _ = timed(lambda size: 1e-5 * (size + 128) * (1.3 if size == 256 else 1.0))
    assert timing.best_size(SIZES) == 2048


def test_one_pass_alone_costs_nothing_beside_its_tokens():
    assert Timing([TimedPass(64, 0.5)], ended=True).line == (0.0, 0.5 / 64)


class PretendForward(Forward):
    """Passes that take what a table says, and give logits of 0.

    :param prompt: seconds of a pass over prompts, by its tokens.
    :param step: seconds of a step, by its rows.
    """

    def __init__(self, model, clock, prompt, step):
        super().__init__(model)
        self.clock, self.prompt, self.step = clock, prompt, step

    def __call__(self, candidates, tokens, mask, scored, cache=None, target_offset=0):
        rows, width = tokens.shape
        self.clock.now += self.step(rows) if width == 1 else self.prompt(rows * width)
        return torch.zeros(sum(scored), 257)


@pytest.fixture
def measure(tokenizer):
    """The sizes on a pretend device."""

    def sizes(prompt, step, **changes):
        clock = PretendClock()
        model = LanguageModel(build_model(), tokenizer)
        model.max_memory = changes.pop("max_memory", 2**40)
        model.memory = changes.pop("memory", model.memory)
        if "capabilities" in changes:
            model.rely_on(changes["capabilities"])
        model.forward = PretendForward(model.model, clock, prompt, step)
        return measure_batch_sizes(model, candidates=2, clock=clock)

    return sizes


def test_prompts_and_decoding_are_measured_apart(measure):
    sizes = measure(lambda tokens: 1e-6 * (1000 + tokens), lambda rows: 1e-6 * (400 + 2 * rows))
    assert sizes == BatchSizes(tokens=16_384, rows=4096, pass_tokens=1000, step_tokens=400)


@pytest.mark.parametrize(("rows", "steps"), [(7, 0), (0, 9)])
def test_the_memory_estimate_ends_the_sizes(measure, rows, steps):
    """A token takes a byte in a pass, or one in the cache."""
    memory = MemoryEstimate(token=1 if rows else 0, cached=0 if rows else 1, logits=0)
    limit = rows * WIDTH if rows else steps * (WIDTH + 1)
    sizes = measure(lambda _: 1e-6, lambda _: 1e-6, memory=memory, max_memory=limit)
    assert sizes.tokens == (4 * WIDTH if rows else 2048 * WIDTH)
    assert sizes.rows == (256 if rows else 8)


@pytest.mark.parametrize("missing", ["cache", "drop_rows"])
def test_without_steps_that_rows_can_leave_prompts_alone_are_measured(measure, missing):
    able = Capabilities().without(missing)
    sizes = measure(lambda tokens: 1e-6 * (128 + tokens), lambda _: 1e-6, capabilities=able)
    assert sizes == BatchSizes(tokens=2048, rows=None, pass_tokens=128)


def test_rows_of_which_none_share_a_pass_have_passes_of_one(measure):
    able = Capabilities().without("batch_rows")
    assert measure(lambda _: 1e-6, lambda _: 1e-6, capabilities=able).tokens == WIDTH


def test_measuring_leaves_the_model_and_random_numbers_as_they_were(tokenizer):
    model = LanguageModel(build_model(), tokenizer)
    model.max_memory = 2**20
    before, forward = torch.get_rng_state(), model.forward
    sizes = measure_batch_sizes(model)
    assert sizes.rows >= 4 and sizes.tokens >= 2 * WIDTH
    assert model.forward is forward and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("batch_tokens", "device", "expected"),
    [
        (None, "cpu", False),
        (None, "cuda", True),
        ("auto", "cpu", True),
        (2048, "cuda", False),
        (BatchSizes(4096), "cuda", False),
    ],
)
def test_accelerators_are_measured_by_default_and_others_on_request(batch_tokens, device, expected):
    assert is_to_be_measured(batch_tokens, torch.device(device)) == expected


def test_as_a_setting_sizes_are_one_number_or_a_table():
    assert BatchSizes(4096).as_setting() == 4096
    measured = BatchSizes(4096, 64, 100, 30)
    assert measured.as_setting() == {
        "tokens": 4096,
        "rows": 64,
        "pass_tokens": 100,
        "step_tokens": 30,
    }
    assert BatchSizes(**measured.as_setting()) == measured
    assert BatchSizes(4096, None, 100).as_setting() == {
        "tokens": 4096,
        "pass_tokens": 100,
        "step_tokens": 0,
    }
    static = BatchSizes(4096, 64, 100, 30, 12)
    assert static.as_setting() == {**measured.as_setting(), "static_from": 12}
    assert BatchSizes(**static.as_setting()) == static and static.with_tokens(64).static_from == 12
    assert static.in_words().endswith("; a static cache is faster from 12 new tokens on")


def test_smaller_passes_have_fewer_rows_that_decode():
    assert BatchSizes(4096, 64).with_tokens(1024) == BatchSizes(1024, 16)
    assert BatchSizes(4096, 2).with_tokens(1) == BatchSizes(1, 1)
    assert BatchSizes(4096).with_tokens(1024) == BatchSizes(1024)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "expected tokens to be a whole number of at least 1, found 0"),
        ({"tokens": "many"}, "expected tokens to be a whole number of at least 1, found 'many'"),
        ({"rows": 0}, "expected rows to be a whole number of at least 1, found 0"),
        ({"static_from": 0}, "expected static_from to be a whole number of at least 1, found 0"),
        ({"pass_tokens": -1}, "expected pass_tokens to be a whole number of at least 0, found -1"),
    ],
)
def test_sizes_that_no_batch_can_have_are_refused(values, message):
    with pytest.raises(ValueError, match=f"^batch_tokens: {message}$"):
        BatchSizes(**values)
