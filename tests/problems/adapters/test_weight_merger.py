"""Merges in the weights beside the unmerged ones, and the base afterwards."""

import pytest
import torch
from builders import TARGETS, build_model, stack_folders, two_adapters

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.weight_merger import WeightMerger, merged_in_place

COEFFICIENTS = torch.tensor([[0.7, -1.2], [0.0, 0.0], [-0.4, 0.9], [1.5, 0.3]])
TOKENS = torch.arange(1, 19).reshape(2, 9)


def copy_weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def has_weights(model, weights):
    """Whether the model's weights are these, bit for bit."""
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("architecture", TARGETS)
def test_merges_in_the_weights_equal_the_unmerged_ones_and_leave_the_base_as_it_was(
    architecture, make_adapter
):
    model = build_model(architecture)
    modules = stack_folders(two_adapters(architecture, make_adapter))
    before = copy_weights(model)
    found = []
    with merged_in_place(WeightMerger(model, modules), COEFFICIENTS) as candidates:
        for _ in candidates:
            found.append(model(TOKENS).logits)
    assert len(found) == len(COEFFICIENTS)
    for logits, coefficients in zip(found, COEFFICIENTS, strict=True):
        with merged(model, modules, coefficients):
            torch.testing.assert_close(logits, model(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert has_weights(model, before)
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_error_between_merges_leaves_the_base_as_it_was_bit_for_bit(make_adapter, dtype):
    model = build_model().to(dtype)
    merger = WeightMerger(model, stack_folders([make_adapter("a")], dtype))
    before = copy_weights(model)
    pop = torch.tensor([[3.0], [1.0]])
    with pytest.raises(KeyError), merged_in_place(merger, pop) as candidates:
        next(candidates)
        assert not has_weights(model, before)
        raise KeyError("stop")
    assert has_weights(model, before)
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_a_weight_that_two_layers_share_is_not_changed_for_both(make_adapter):
    model = build_model(tie_word_embeddings=True)
    settings = {"target_modules": ["embed_tokens", "q_proj"]}
    modules = stack_folders(
        [make_adapter("tied", build_model(tie_word_embeddings=True), **settings)]
    )
    coefficients = torch.tensor([0.8])
    with merged_in_place(WeightMerger(model, modules), coefficients[None]) as candidates:
        next(candidates)
        found = model(TOKENS).logits
    with merged(model, modules, coefficients):
        torch.testing.assert_close(found, model(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_the_copy_is_as_large_as_the_weights_that_change(make_adapter):
    model = build_model()
    modules = stack_folders([make_adapter("a", target_modules=["q_proj", "v_proj"])])
    # Two layers with a query of 16 x 16 and a value of 8 x 16 in float32.
    assert WeightMerger.bytes_kept(model, modules) == 2 * (16 * 16 + 8 * 16) * 4


def test_a_shared_weight_counts_once_in_the_size_of_the_copy():
    model = build_model(tie_word_embeddings=True)
    size = WeightMerger.bytes_kept(model, ["model.embed_tokens", "lm_head"])
    assert size == 257 * 16 * 4
