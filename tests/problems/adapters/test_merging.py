"""The merge beside a dense one computed here from the files, and beside peft's own where peft is right."""

import json

import pytest
import torch
from builders import build_model
from safetensors.torch import load_file

from evox_evogm.problems.adapters.merging import (
    export_adapter,
    merged,
    reload_difference,
    stack_experts,
)
from evox_evogm.problems.adapters.read_adapter import read_expert

MIXED = [  # every way in which two adapters of one base may differ
    {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj"]},
    {
        "r": 5,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "down_proj", "lm_head"],
        "use_rslora": True,
    },
    {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj", "o_proj"],
        "rank_pattern": {"v_proj": 6, "layers.0.self_attn.q_proj": 1},
        "alpha_pattern": {"v_proj": 5, "model.layers.1.self_attn.o_proj": 12},
    },
    {"r": 4, "lora_alpha": 8, "target_modules": ["up_proj", "embed_tokens"]},
]
COEFFICIENTS = torch.tensor([0.7, -1.3, 0.4, 2.1])
TOKENS = torch.arange(1, 41).reshape(2, 20)


def mixed_adapters(make_adapter):
    return [make_adapter(f"expert{i}", seed=i, **settings) for i, settings in enumerate(MIXED)]


def dense_merge(model, folders, scales, coefficients):
    """A copy of the model with sum lambda s B A added to its weights; `scales(index, module)` is worked out by hand."""
    copy = build_model(model.config.model_type)
    copy.load_state_dict(model.state_dict())
    if hasattr(copy, "lm_head") and copy.lm_head.weight is getattr(
        copy.get_input_embeddings(), "weight", None
    ):
        copy.lm_head.weight = torch.nn.Parameter(
            copy.lm_head.weight.detach().clone()
        )  # an adapter of one is not of both
    for index, folder in enumerate(folders):
        tensors = load_file(folder / "adapter_model.safetensors")
        for key in tensors:
            if ".lora_A." in key or key.endswith("embedding_A"):
                module = key.removeprefix("base_model.model.").split(".lora_")[0]
                delta = tensors[key.replace("_A", "_B")] @ tensors[key]  # (D_out, D_in)
                weight = copy.get_submodule(module).weight
                delta = (
                    delta
                    if weight.shape == delta.shape and "embed" not in key and "c_" not in key
                    else delta.T
                )
                weight.data += coefficients[index] * scales(index, module) * delta
    return copy


def mixed_scale(index, module):
    if index == 1:
        return 3 / 5**0.5
    if index == 2 and module.endswith("v_proj"):
        return 5 / 6
    if module == "model.layers.0.self_attn.q_proj" and index == 2:
        return 6 / 1
    if module == "model.layers.1.self_attn.o_proj" and index == 2:
        return 12 / 3
    return {0: 7 / 2, 2: 6 / 3, 3: 8 / 4}[index]


@torch.no_grad()
def test_logits_equal_a_dense_merge_of_adapters_that_differ_in_everything(model, make_adapter):
    folders = mixed_adapters(make_adapter)
    expected = dense_merge(model, folders, mixed_scale, COEFFICIENTS)(TOKENS).logits
    modules = stack_experts(
        [read_expert(folder) for folder in folders], torch.float32, torch.device("cpu")
    )
    plain = model(TOKENS).logits
    with merged(model, modules, COEFFICIENTS):
        found = model(TOKENS).logits
    assert (found - plain).abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_equal_a_dense_merge_in_conv1d_layers(gpt2, make_adapter):
    settings = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    folders = [
        make_adapter(f"g{i}", gpt2, seed=i, r=2 + i, lora_alpha=6, **settings) for i in range(2)
    ]
    expected = dense_merge(gpt2, folders, lambda index, module: 6 / (2 + index), COEFFICIENTS[:2])(
        TOKENS
    ).logits
    modules = stack_experts(
        [read_expert(folder) for folder in folders], torch.float32, torch.device("cpu")
    )
    with merged(gpt2, modules, COEFFICIENTS[:2]):
        torch.testing.assert_close(gpt2(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_equal_pefts_cat_where_peft_is_right(model, make_adapter):
    from peft import PeftModel

    settings = [{"r": 2, "lora_alpha": 7}, {"r": 5, "lora_alpha": 3}, {"r": 4, "lora_alpha": 4}]
    folders = [make_adapter(f"p{i}", seed=i, **s) for i, s in enumerate(settings)]
    reference = PeftModel.from_pretrained(build_model(), folders[0], adapter_name="p0")
    for name, folder in (("p1", folders[1]), ("p2", folders[2])):
        reference.load_adapter(folder, adapter_name=name)
    weights = [0.5, -0.8, 1.7]
    reference.add_weighted_adapter(["p0", "p1", "p2"], weights, "merge", combination_type="cat")
    reference.set_adapter("merge")
    modules = stack_experts(
        [read_expert(folder) for folder in folders], torch.float32, torch.device("cpu")
    )
    with merged(model, modules, torch.tensor(weights)):
        torch.testing.assert_close(
            model(TOKENS).logits, reference(TOKENS).logits, rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
def test_the_base_is_as_it_was_afterwards_even_after_an_error(model, make_adapter):
    modules = stack_experts([read_expert(make_adapter("a"))], torch.float32, torch.device("cpu"))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model(TOKENS).logits
    with pytest.raises(KeyError), merged(model, modules, torch.tensor([1.0])):
        assert not torch.equal(model(TOKENS).logits, plain)
        raise KeyError("stop")
    assert torch.equal(model(TOKENS).logits, plain)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_bfloat16_models_keep_their_dtype_and_come_close_to_float32(model, make_adapter):
    experts = [read_expert(make_adapter("a"))]
    with merged(
        model, stack_experts(experts, torch.float32, torch.device("cpu")), torch.tensor([0.5])
    ):
        exact = model(TOKENS).logits
    model = model.to(torch.bfloat16)
    with merged(
        model, stack_experts(experts, torch.bfloat16, torch.device("cpu")), torch.tensor([0.5])
    ):
        found = model(TOKENS).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() / exact.norm() < 0.05


@torch.no_grad()
@pytest.mark.parametrize("coefficients", [COEFFICIENTS, torch.tensor([0.0, 1.0, 0.0, -0.5])])
def test_an_exported_merge_reloads_with_plain_peft_to_the_same_logits(
    model, make_adapter, tmp_path, coefficients
):
    from peft import PeftModel

    experts = [read_expert(folder) for folder in mixed_adapters(make_adapter)]
    with merged(model, stack_experts(experts, torch.float32, torch.device("cpu")), coefficients):
        expected = model(TOKENS).logits
    export_adapter(experts, coefficients, tmp_path / "merge", base="a/base")
    reloaded = PeftModel.from_pretrained(build_model(), tmp_path / "merge")
    torch.testing.assert_close(reloaded(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "merge" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "a/base" and config["r"] == config["lora_alpha"]


def test_the_comparison_after_a_reload_notices_a_wrong_adapter(model, make_adapter, tmp_path):
    experts = [read_expert(folder) for folder in mixed_adapters(make_adapter)]
    export_adapter(experts, COEFFICIENTS, tmp_path / "merge", base="")
    assert reload_difference(model, experts, COEFFICIENTS, tmp_path / "merge") < 1e-6
    assert reload_difference(model, experts, COEFFICIENTS * 1.01, tmp_path / "merge") > 5e-3
    assert not any("lora" in name for name, _ in model.named_modules())


def test_experts_that_a_merge_leaves_out_are_left_out_of_the_comparison(
    model, make_adapter, tmp_path
):
    experts = [read_expert(folder) for folder in mixed_adapters(make_adapter)]
    alone = torch.tensor([1.0, 0.0, 0.0, 0.0])
    export_adapter(experts, alone, tmp_path / "merge", base="")
    assert {
        path
        for path in load_file(tmp_path / "merge" / "adapter_model.safetensors")
        if "q_proj" not in path
    } == set()
    assert reload_difference(model, experts, alone, tmp_path / "merge") < 1e-6


def test_a_merge_with_nothing_in_it_is_not_exported(make_adapter, tmp_path):
    with pytest.raises(ValueError, match="all 0; the merge is the base model itself"):
        export_adapter(
            [read_expert(make_adapter("a"))], torch.zeros(1), tmp_path / "merge", base=""
        )
    assert not (tmp_path / "merge").exists()
