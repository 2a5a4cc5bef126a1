"""The note on copied factors says how much a merge without one of the experts copies."""

import math

import pytest
import torch
from builders import build_model

from evox_evogm.problems.adapters.groups import group_modules
from evox_evogm.problems.adapters.population import Population
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.checkpoints.full_checkpoint import ranks_of_modules
from evox_evogm.problems.factor_copies import GIB, bytes_of_experts, note_of_copies
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.population_scorer import PopulationScorer


@pytest.fixture(params=["expert", "layer", "channel"])
def scorer(request, make_adapter, tokenizer):
    """A scorer of two experts: rank 2 of q (16 inputs, 16 outputs), rank 3 of v (16, 8)."""
    folders = [
        make_adapter("first", r=2, target_modules=["q_proj"]),
        make_adapter("second", r=3, target_modules=["v_proj"]),
    ]
    experts = [read_expert(folder) for folder in folders]
    groups = group_modules(ranks_of_modules(experts), request.param)
    model = LanguageModel(build_model(), tokenizer)
    return PopulationScorer(
        model, experts, groups=groups, modes={}, max_memory=GIB, measure_batches=False
    )


def test_the_copy_is_that_of_the_other_experts(scorer):
    # Of two layers, in bytes of float32.
    first, second = 2 * 4 * 2 * (16 + 16), 2 * 4 * 3 * (16 + 8)
    assert bytes_of_experts(scorer) == [first, second]
    without = torch.ones(1, scorer.n_coefficients)
    without[:, : scorer.groups.count] = 0
    assert Population(scorer.stacked, without).bytes_copied == second


def test_a_copy_of_over_half_of_the_memory_is_told_with_what_to_set(scorer):
    largest = max(bytes_of_experts(scorer))
    assert note_of_copies(scorer) == []
    scorer.max_memory = 2 * largest
    assert note_of_copies(scorer) == []
    scorer.max_memory = 2 * largest - 2
    (note,) = note_of_copies(scorer)
    assert f"over half of max_memory ({scorer.max_memory / GIB:.2g} GiB)" in note
    wanted = math.ceil(20 * largest / GIB) / 10
    assert f"set max_memory: {wanted:g}, in GiB" in note
    scorer.max_memory = wanted * GIB
    assert note_of_copies(scorer) == []
    scorer.max_memory, scorer.modes = 1, {"quiz": "merged"}
    assert note_of_copies(scorer) == []
