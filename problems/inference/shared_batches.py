"""Batches whose rows belong to several merges, the experts of which are added by hooks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.population import Population
from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.shared_layers import count_shared_layers


@contextmanager
def share_batches(
    model: ScoredModel,
    modules: Mapping[str, StackedModule],
    pop: torch.Tensor,
    *,
    own_rows: bool = False,
) -> Iterator[Population]:
    """Inside the block requests to a model may be for any of P merges.

    Factors that had to be copied, of the experts that some merge uses, leave passes less memory.

    :param modules: the stacked experts.
    :param pop: a `(P, n g)` tensor of effective coefficients.
    :param own_rows: whether derivatives by the coefficients of each row are taken.
    """
    with merged(model.model, modules, pop, own_rows=own_rows) as population:
        shared_layers = count_shared_layers(model.model, population.modules)
        coefficients = (lambda: population.row_coefficients) if own_rows else None
        max_memory = model.max_memory
        model.max_memory = max(1, max_memory - population.bytes_copied)
        try:
            with model.candidates(population.select, shared_layers, coefficients):
                yield population
        finally:
            model.max_memory = max_memory
