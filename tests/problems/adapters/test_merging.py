"""The merge beside a dense one computed here from the files, and beside peft's own."""

import copy

import pytest
import torch
from builders import build_model, mixed_adapters, stack_folders
from safetensors.torch import load_file

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.adapters.stacked_modules import stack_experts

COEFFICIENTS = torch.tensor([0.7, -1.3, 0.4, 2.1])
TOKENS = torch.arange(1, 41).reshape(2, 20)


def dense_merge(model, folders, scale_of, coefficients):
    """A copy of the model with sum lambda s B A added to its weights.

    :param scale_of: a function of the adapter's index and the module's name, worked out by hand.
    """
    dense = copy.deepcopy(model)
    for index, folder in enumerate(folders):
        tensors = load_file(folder / "adapter_model.safetensors")
        for key, a in tensors.items():
            if "lora_A" not in key and "embedding_A" not in key:
                continue
            b = tensors[key.replace("_A", "_B")]
            module = key.removeprefix("base_model.model.").split(".lora_")[0]
            delta = coefficients[index] * scale_of(index, module) * b @ a  # (D_out, D_in)
            if "embed" in module or "c_" in module:  # these keep (D_in, D_out)
                delta = delta.T
            dense.get_submodule(module).weight.data += delta
    return dense


def mixed_scale(index, module):
    """s of the modules of `mixed_adapters`."""
    if index == 1:
        return 3 / 5**0.5
    if index == 2 and module.endswith("v_proj"):
        return 5 / 6
    if index == 2 and module == "model.layers.0.self_attn.q_proj":
        return 6 / 1
    if index == 2 and module == "model.layers.1.self_attn.o_proj":
        return 12 / 3
    return {0: 7 / 2, 2: 6 / 3, 3: 8 / 4}[index]


@torch.no_grad()
def test_logits_equal_a_dense_merge_of_adapters_that_differ_in_everything(model, make_adapter):
    folders = mixed_adapters(make_adapter)
    expected = dense_merge(model, folders, mixed_scale, COEFFICIENTS)(TOKENS).logits
    plain = model(TOKENS).logits
    with merged(model, stack_folders(folders), COEFFICIENTS):
        found = model(TOKENS).logits
    assert (found - plain).abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_equal_a_dense_merge_in_conv1d_layers(gpt2, make_adapter):
    settings = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "lora_alpha": 6}
    folders = [
        make_adapter("one", gpt2, seed=0, r=2, **settings),
        make_adapter("other", gpt2, seed=1, r=3, **settings),
    ]
    coefficients = COEFFICIENTS[:2]
    dense = dense_merge(gpt2, folders, lambda index, module: 6 / (2 + index), coefficients)
    expected = dense(TOKENS).logits
    with merged(gpt2, stack_folders(folders), coefficients):
        torch.testing.assert_close(gpt2(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_equal_pefts_cat_where_peft_is_right(model, make_adapter):
    from peft import PeftModel

    folders = [
        make_adapter("p0", seed=0, r=2, lora_alpha=7),
        make_adapter("p1", seed=1, r=5, lora_alpha=3),
        make_adapter("p2", seed=2, r=4, lora_alpha=4),
    ]
    weights = [0.5, -0.8, 1.7]
    reference = PeftModel.from_pretrained(build_model(), folders[0], adapter_name="p0")
    reference.load_adapter(folders[1], adapter_name="p1")
    reference.load_adapter(folders[2], adapter_name="p2")
    reference.add_weighted_adapter(["p0", "p1", "p2"], weights, "merge", combination_type="cat")
    reference.set_adapter("merge")
    expected = reference(TOKENS).logits
    with merged(model, stack_folders(folders), torch.tensor(weights)):
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_base_is_as_it_was_afterwards_even_after_an_error(model, make_adapter):
    modules = stack_folders([make_adapter("a")])
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
    folder = make_adapter("a")
    half = torch.tensor([0.5])
    with merged(model, stack_folders([folder]), half):
        exact = model(TOKENS).logits
    model = model.to(torch.bfloat16)
    with merged(model, stack_folders([folder], torch.bfloat16), half):
        found = model(TOKENS).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() / exact.norm() < 0.05


def test_factors_take_the_dtype_of_their_weight_unless_it_is_no_floating_point_type(
    model, make_adapter
):
    experts = [read_expert(make_adapter("a", target_modules=["q_proj", "v_proj"]))]
    layer = model.model.layers[0].self_attn
    layer.q_proj.to(torch.bfloat16)
    layer.v_proj.weight = torch.nn.Parameter(torch.ones(8, 16).char(), requires_grad=False)
    modules = stack_experts(experts, torch.float16, torch.device("cpu"), model)
    dtypes = {name: module.a.dtype for name, module in modules.items() if ".0." in name}
    assert dtypes == {
        "model.layers.0.self_attn.q_proj": torch.bfloat16,
        "model.layers.0.self_attn.v_proj": torch.float16,
    }


def test_gradients_flow_through_the_coefficients(model, make_adapter):
    # AdaMerging learns coefficients: the hooks must not change outputs in place then.
    modules = stack_folders([make_adapter("a")])
    weight = torch.tensor([[0.5]], requires_grad=True)
    with merged(model, modules, torch.ones(1)) as population:
        for name, module in population.modules.items():
            population.weights[name] = module.channel_weights(weight)
        model(TOKENS).logits.square().mean().backward()
    assert weight.grad.abs() > 0
