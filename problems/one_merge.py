"""One merge as the model that answers, in whichever mode works on the base."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.weight_merger import merged_in_place
from evox_evogm.problems.default_device import on_cpu_by_default
from evox_evogm.problems.inference.base_model import ready_to_score
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.population_scorer import PopulationScorer


@contextmanager
def as_one_merge(scorer: PopulationScorer, coefficients: torch.Tensor) -> Iterator[ScoredModel]:
    """Inside the block the language model is one merge; afterwards it is as it was.

    :param scorer: of a `LoRAMergeProblem`.
    :param coefficients: an `(n g,)` tensor of effective coefficients.
    """
    model = scorer.language_model
    pop = coefficients[None]
    with ready_to_score(model.model), on_cpu_by_default(), ExitStack() as stack:
        if model.capabilities.unmerged:
            population = stack.enter_context(merged(model.model, scorer.stacked, pop))
            stack.enter_context(model.candidates(population.select))
        else:
            next(stack.enter_context(merged_in_place(scorer.weight_merger, pop)))
        yield model
