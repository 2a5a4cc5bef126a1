"""Whole models with a merge in their weights, beside plain peft's `merge_and_unload`."""

import pytest
import torch
from builders import build_model, mixed_adapters, two_adapters
from other_bases import build_mixtral, build_qwen3_moe, logits_of, peft_logits

from evox_evogm.problems.adapters.export import merge_factors, write_adapter
from evox_evogm.problems.adapters.merged_model import copy_with_merge, weight_errors
from evox_evogm.problems.adapters.read_adapter import read_expert

TOKENS = torch.arange(1, 41).reshape(2, 20)


def merged_by_peft(model, folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def reloaded(model, folder):
    """The model as transformers loads it from a folder of small files."""
    model.save_pretrained(folder, max_shard_size="10KB")
    return type(model).from_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma", "gpt2"])
def test_a_model_with_one_adapter_is_what_peft_merges(make_adapter, tmp_path, architecture):
    folder = two_adapters(architecture, make_adapter)[0]
    model = build_model(architecture, tie_word_embeddings=False)
    factors = merge_factors([read_expert(folder)], torch.ones(1))
    found = reloaded(copy_with_merge(model, factors, torch.float32), tmp_path / "model")
    expected = merged_by_peft(build_model(architecture, tie_word_embeddings=False), folder)
    torch.testing.assert_close(found(TOKENS).logits, expected(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1


@torch.no_grad()
def test_an_output_layer_that_shares_the_embedding_gets_a_weight_of_its_own(make_adapter, tmp_path):
    """peft adapts the embedding alone, so a checkpoint with one weight for both would be another
    model.
    """
    folder = make_adapter("one", r=3, target_modules=["embed_tokens", "q_proj"])
    tied = build_model(tie_word_embeddings=True)
    expected = peft_logits(build_model(tie_word_embeddings=True), folder)
    factors = merge_factors([read_expert(folder)], torch.ones(1))
    found = reloaded(copy_with_merge(tied, factors, torch.float32), tmp_path / "model")
    assert found.config.tie_word_embeddings is False
    torch.testing.assert_close(logits_of(found), expected, rtol=1e-4, atol=1e-4)
    assert tied.config.tie_word_embeddings is True


@torch.no_grad()
def test_where_only_other_layers_change_the_weights_stay_shared(make_adapter, tmp_path):
    folder = make_adapter("one", target_modules=["q_proj"])
    factors = merge_factors([read_expert(folder)], torch.ones(1))
    merged = copy_with_merge(build_model(tie_word_embeddings=True), factors, torch.float32)
    found = reloaded(merged, tmp_path / "model")
    assert found.config.tie_word_embeddings is True
    assert found.lm_head.weight is found.model.embed_tokens.weight


@pytest.mark.parametrize("build", [build_mixtral, build_qwen3_moe])
@pytest.mark.language_model
def test_the_parameters_of_a_mixture_are_merged_and_loaded_again(make_adapter, tmp_path, build):
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    settings = {"r": 2, "target_modules": ["q_proj"], "target_parameters": targets}
    folder = make_adapter("one", build(), lora_dropout=0.0, **settings)
    expected = peft_logits(build(), folder)
    assert not torch.allclose(expected, logits_of(build()), atol=0.1)
    from sick_adapters import load_experts

    factors = merge_factors(load_experts([folder], build()), torch.ones(1))
    assert any(module.is_parameter for module in factors.values())
    found = reloaded(copy_with_merge(build(), factors, torch.float32), tmp_path / "model")
    torch.testing.assert_close(logits_of(found), expected, rtol=1e-3, atol=1e-3)


def test_the_base_stays_as_it_was_and_shares_nothing(model, make_adapter):
    folders = mixed_adapters(make_adapter)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    factors = merge_factors([read_expert(folder) for folder in folders], torch.ones(4))
    merged = copy_with_merge(model, factors, torch.float32)
    for weight in merged.parameters():
        weight.data.fill_(7.0)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


@torch.no_grad()
def test_a_half_precision_is_rounded_once_and_the_error_is_that_of_the_weights(model, make_adapter):
    folder = make_adapter("one", target_modules=["q_proj"])
    factors = merge_factors([read_expert(folder)], torch.ones(1))
    merged = copy_with_merge(model, factors, torch.bfloat16)
    assert merged.config.dtype == torch.bfloat16
    squares, total = 0.0, 0.0
    for name, module in factors.items():
        delta = module.b @ module.a
        exact = model.get_submodule(name).weight + delta
        found = merged.get_submodule(name).weight
        assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())
        squares += float((exact.bfloat16().float() - exact).square().sum())
        total += float(delta.square().sum())
    error = weight_errors(model, merged, factors)
    assert error.overall == pytest.approx((squares / total) ** 0.5, rel=1e-4)
    assert set(error.by_module) == set(factors)


def test_weights_that_a_precision_cannot_hold_are_refused(model, make_adapter, tmp_path):
    factors = merge_factors([read_expert(make_adapter("one"))], torch.tensor([1e6]))
    with pytest.raises(ValueError, match="expected weights that float16 can hold, found .*q_proj"):
        copy_with_merge(model, factors, torch.float16)
    with pytest.raises(ValueError, match="expected numbers that float16 can hold, found .*q_proj"):
        write_adapter(factors, tmp_path / "adapter", base="", dtype=torch.float16)
    assert not (tmp_path / "adapter").exists()
