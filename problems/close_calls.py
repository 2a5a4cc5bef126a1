"""Modes that the cost model expects to be about as fast are timed on the task itself.

Its rates come from random tokens in passes of a few sizes. On accelerators, where small differences
of shapes matter, this tells modes apart that differ by a factor, not by a few percent.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.cost_model import MODES
from evox_evogm.problems.failures import in_one_line
from evox_evogm.problems.inference.device_clock import Clock, clock_of
from evox_evogm.problems.tasks.task import Task

if TYPE_CHECKING:
    from evox_evogm.problems.population_scorer import PopulationScorer

log = logging.getLogger(__name__)
CLOSE = 2.0  # a mode that is expected to be so many times as fast is not timed
# That one of the runs is expected to take. With 5 s the first score waited for half a minute.
MOST_SECONDS = 2.0
REPEATS = 2  # of each mode, in turn


def is_close_call(expected: Mapping[str, float], load_seconds: float) -> bool:
    """Whether the expected times of the modes are about the same.

    :param expected: seconds by mode, without loading.
    :param load_seconds: the time to put all candidates into the weights.
    """
    unmerged, merged = expected["unmerged"], expected["merged"] + load_seconds
    return max(unmerged, merged) < CLOSE * min(unmerged, merged)


def time_modes(
    scorer: "PopulationScorer",
    tasks: Sequence[Task],
    candidates: int,
    expected: Mapping[str, float],
    load_seconds: float,
    clock: Clock | None = None,
) -> dict[str, float]:
    """Time both modes on tasks that share batches, or on a part of their examples.

    :param candidates: P, how many are scored.
    :param expected: seconds by mode, without loading.
    :param load_seconds: the time to put all candidates into the weights.
    :param clock: gives seconds once the device has done its work; by default that of the machine.
    :return: seconds by mode for all examples, without loading; those that were expected if memory
        ran out or a pass failed.
    """
    clock = clock or clock_of(scorer.language_model.device)
    share = min(1.0, MOST_SECONDS / max(expected.values()))
    some = [task.take(math.ceil(share * len(task.examples))) for task in tasks]
    part = sum(len(task.examples) for task in some) / sum(len(task.examples) for task in tasks)
    pop = torch.full((candidates, scorer.n_coefficients), 0.5)
    found = dict.fromkeys(MODES, math.inf)
    try:
        for _ in range(REPEATS):
            for mode in MODES:
                start = clock()
                scorer.score_here(pop, some, dict.fromkeys([task.name for task in some], mode))
                found[mode] = min(found[mode], clock() - start)
    except (RuntimeError, MemoryError) as error:
        log.warning("modes could not be timed: %s", in_one_line(error))
        return dict(expected)
    found["merged"] = max(0.0, found["merged"] - load_seconds)
    return {mode: seconds / part for mode, seconds in found.items()}
