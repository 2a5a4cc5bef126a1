"""From how many new tokens on decoding with a static cache is faster, as timed on a device."""

import math
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.failures import is_out_of_memory_by_torch
from evox_evogm.problems.inference.device_clock import Clock
from evox_evogm.problems.inference.static_steps import StaticSteps, make_static_steps

if TYPE_CHECKING:
    from evox_evogm.problems.inference.language_model import LanguageModel
    from evox_evogm.problems.inference.measure_batches import RandomBatches

FIRST_STEPS = 2  # the one that runs before a capture, and the one that is captured
TIMED_STEPS = 4
LEAST_SAVING = 0.05  # of a step
# How often a batch begins anew with its first steps: rows leave it whenever a quarter has ended.
RESTARTS = 4


def measure_static(
    model: "LanguageModel", batches: "RandomBatches", rows: int, clock: Clock
) -> int | None:
    """The least number of new tokens for which a static cache is faster, or None.

    It is so where steps are captured, and nowhere else.

    :param batches: of random tokens.
    :param rows: that decode together.
    """
    if not model.capabilities.static_cache or model.device.type != "cuda":
        return None
    try:
        return time_static(model, batches, rows, clock)
    except RuntimeError as error:
        if is_out_of_memory_by_torch(error):
            return None
        raise


def time_static(
    model: "LanguageModel", batches: "RandomBatches", rows: int, clock: Clock
) -> int | None:
    """The same from the times of steps of both kinds, whether or not they are captured."""
    growing_step = batches.step(rows)
    growing_step()
    start = clock()
    for _ in range(TIMED_STEPS):
        growing_step()
    growing = (clock() - start) / TIMED_STEPS
    cache, mask, tokens = batches.filled_cache(rows)
    owners = batches.owners(rows)
    start = clock()
    steps = make_static_steps(model.forward, owners, cache, mask, FIRST_STEPS + TIMED_STEPS)
    if steps is None:
        return None
    _run(steps, tokens, FIRST_STEPS)
    ready = clock()
    _run(steps, tokens, TIMED_STEPS)
    static = (clock() - ready) / TIMED_STEPS
    return pays_from(ready - start - FIRST_STEPS * growing, static, growing)


def pays_from(beginning: float, static: float, growing: float) -> int | None:
    """The number of new tokens from which on a static cache is faster, or None if it never is.

    :param beginning: the seconds that its first steps take longer.
    :param static: the seconds of a step behind them.
    :param growing: the seconds of a step with a growing cache.
    """
    saved = growing - static
    if saved < LEAST_SAVING * growing:
        return None
    steps = math.ceil(RESTARTS * max(0.0, beginning) / saved)
    return 1 + FIRST_STEPS + steps  # the first token is that of the prompts' pass


def _run(steps: StaticSteps, tokens: torch.Tensor, times: int) -> None:
    for _ in range(times):
        steps(tokens).argmax(-1)  # as scoring has the logits
