"""How large batches are, where that is to be measured before the first scores."""

import logging
import time
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.default_device import on_cpu_by_default
from evox_evogm.problems.failures import RankLost, in_one_line
from evox_evogm.problems.inference.batch_sizes import BatchSizes
from evox_evogm.problems.inference.measure_batches import measure_batch_sizes
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.rank_group import RANKS_DIFFER, in_process_group

if TYPE_CHECKING:
    from evox_evogm.problems.population_scorer import PopulationScorer

log = logging.getLogger(__name__)


@torch.no_grad()
def choose_batches(scorer: "PopulationScorer") -> None:
    """Measure how large batches are, if that is wanted and not done, and log it."""
    if not scorer.measure_batches:
        return
    model = scorer.language_model
    if scorer.sharing is None and in_process_group():
        # Measured where the ranks score together, later or not at all.
        log.info("batches: %s; %s", model.batch_sizes.in_words(), RANKS_DIFFER)
        return
    scorer.measure_batches = False
    start = time.perf_counter()
    try:
        with on_cpu_by_default():
            model.batch_sizes = measured_batches(scorer)
    except RankLost:
        raise
    except (RuntimeError, MemoryError) as error:
        reason, sizes = in_one_line(error), model.batch_sizes.in_words()
        log.warning("batches: they could not be measured (%s): %s", reason, sizes)
        return
    seconds = time.perf_counter() - start
    log.info("batches: %s; measured in %.1f s", model.batch_sizes.in_words(), seconds)


def measured_batches(scorer: "PopulationScorer") -> BatchSizes:
    """The sizes that rank 0 measures for all ranks, or that this process measures alone."""
    if scorer.sharing is None:
        return measure_here(scorer)
    return scorer.sharing.agree(lambda: measure_here(scorer))


def measure_here(scorer: "PopulationScorer") -> BatchSizes:
    """Measure with two merges that share batches, or where this does not work with the base."""
    model = reading_texts(scorer.language_model)
    if not model.capabilities.unmerged:
        return measure_batch_sizes(model)
    pop = torch.full((2, scorer.n_coefficients), 0.5)
    with (
        merged(model.model, scorer.stacked, pop) as population,
        model.candidates(population.select),
    ):
        return measure_batch_sizes(model, candidates=len(pop))
