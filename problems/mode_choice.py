"""The mode in which each task is scored, where it is not decided already: the faster one.

Where only one mode works it is taken. Otherwise rates are measured once, and a cost model predicts
the seconds of both modes. Image models are compared by a count of multiplications.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evox_evogm.problems.close_calls import is_close_call, time_modes
from evox_evogm.problems.cost_model import measure_rates, predict
from evox_evogm.problems.failures import in_one_line
from evox_evogm.problems.functions.fitness_task import FitnessTask
from evox_evogm.problems.functions.function_scorer import mode_of_function
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.images.image_modes import mode_by_count
from evox_evogm.problems.inference.kinds_of_base import is_encoder_decoder
from evox_evogm.problems.inference.shared_layers import count_shared_layers
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.rank_group import RANKS_DIFFER, in_process_group
from evox_evogm.problems.tasks.metrics import group_tasks
from evox_evogm.problems.tasks.task import Task

if TYPE_CHECKING:
    from evox_evogm.problems.population_scorer import PopulationScorer

log = logging.getLogger(__name__)


def modes_of_tasks(
    scorer: "PopulationScorer", tasks: Sequence[Task], candidates: int
) -> dict[str, str]:
    """The mode of each task: the decided one, or the faster one for so many candidates."""
    modes: dict[str, str] = {}
    undecided = []
    for task in tasks:
        if task.name in scorer.modes:
            modes[task.name] = scorer.modes[task.name]
        elif isinstance(task, FitnessTask):
            able, large_copy = scorer.language_model.capabilities, scorer.copy_is_too_large
            modes[task.name] = mode_of_function(task, able, large_copy=large_copy)
            log.info("task %s: %s; it is a function", task.name, modes[task.name])
        else:
            undecided.append(task)
    if not undecided:
        return modes
    only_mode = the_only_mode(scorer)
    if only_mode is not None:
        mode, reason = only_mode
        for task in undecided:
            log.info("task %s: %s; %s", task.name, mode, reason)
            modes[task.name] = mode
        return modes
    if isinstance(scorer.language_model, ImageModel):
        mode = mode_by_count(scorer.language_model, scorer.stacked, undecided, candidates)
        return modes | dict.fromkeys([task.name for task in undecided], mode)
    loads_anyway = "merged" in modes.values()
    return modes | predicted_modes(scorer, undecided, candidates, loads_anyway)


def the_only_mode(scorer: "PopulationScorer") -> tuple[str, str] | None:
    """The mode that has to be taken, and why; None where modes can be compared."""
    if not scorer.language_model.capabilities.unmerged:
        return "merged", "the unmerged mode does not work here"
    obstacle = obstacle_to_merging(scorer)
    return None if obstacle is None else ("unmerged", obstacle)


def obstacle_to_merging(scorer: "PopulationScorer") -> str | None:
    """Why the merged mode is not considered, or None. In that case the rates are measured."""
    model = scorer.language_model
    if not model.capabilities.merged:
        return "the merged mode does not work on this base"
    if scorer.copy_is_too_large:
        size = f"{scorer.weight_copy.bytes / 2**30:.1f} GiB"
        return f"merged weights would take a copy of {size}, over half of max_memory"
    if isinstance(model, ImageModel):
        return None  # nothing is measured
    if scorer.sharing is None and in_process_group():
        return RANKS_DIFFER
    if is_encoder_decoder(model.model):
        return "modes are not compared on encoder-decoders; mode: merged takes the other one"
    if scorer.rates is not None:
        return None
    try:
        with scorer.room_for_copy():
            scorer.rates = measure_rates(
                reading_texts(model), scorer.stacked, scorer.weight_merger, scorer.n_coefficients
            )
    except (RuntimeError, MemoryError) as error:
        scorer.weight_copy.drop()
        return f"the merged mode could not be measured: {in_one_line(error)}"
    return None


def predicted_modes(
    scorer: "PopulationScorer", tasks: Sequence[Task], candidates: int, loads_anyway: bool
) -> dict[str, str]:
    """The mode of each task that the cost model expects to be faster.

    :param loads_anyway: whether the merges go into the weights for another task.
    """
    rates = scorer.rates
    assert rates is not None, "rates are measured before modes are compared"
    model = reading_texts(scorer.language_model)
    groups = group_tasks(tasks, model)
    shared_layers = count_shared_layers(model.model, scorer.stacked)
    all_loads = candidates * rates.load
    load_seconds = 0.0 if loads_anyway else all_loads
    seconds = []  # per group, by mode
    for group in groups:
        expected = predict(rates, group, model, candidates, shared_layers)
        seconds.append(expected)
    if scorer.times_modes:
        for place, group in enumerate(groups):
            expected = seconds[place]
            if is_close_call(expected, load_seconds):
                with scorer.room_for_copy():
                    seconds[place] = time_modes(scorer, group, candidates, expected, all_loads)
    group_modes = faster_modes(seconds, load_seconds)
    modes: dict[str, str] = {}
    for group, mode, expected in zip(groups, group_modes, seconds, strict=True):
        modes |= {task.name: mode for task in group}
        log_choice(group, mode, candidates, expected, load_seconds)
    return modes


def faster_modes(seconds: Sequence[Mapping[str, float]], load_seconds: float) -> list[str]:
    """The mode of each group of tasks.

    Merges go into the weights once for all groups, so the time that this takes has to be saved over
    all of them.

    :param seconds: per group the expected seconds by mode, without loading.
    :param load_seconds: the time to put all candidates into the weights.
    """
    saved = sum(max(0.0, expected["unmerged"] - expected["merged"]) for expected in seconds)
    modes = []
    for expected in seconds:
        merge = saved > load_seconds and expected["merged"] < expected["unmerged"]
        modes.append("merged" if merge else "unmerged")
    return modes


def log_choice(
    group: Sequence[Task],
    mode: str,
    candidates: int,
    expected: Mapping[str, float],
    load_seconds: float,
) -> None:
    """Log the mode of tasks that share batches, and the expected seconds that decided it."""
    scored = "1 candidate" if candidates == 1 else f"{candidates} candidates"
    scored += f" of {len(group)} tasks that share batches" if len(group) > 1 else ""
    for task in group:
        log.info(
            "task %s: %s; expected for %s: unmerged "
            "%.2f s, merged %.2f s and %.3f s, once for all tasks, to change the weights",
            task.name,
            mode,
            scored,
            expected["unmerged"],
            expected["merged"],
            load_seconds,
        )
