"""An exported merge, read back with plain peft."""

import json

import pytest
import torch
from builders import build_model, mixed_adapters, stack_folders
from safetensors.torch import load_file

from evox_evogm.problems.adapters.export import export_adapter, reload_difference
from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.read_adapter import read_expert

COEFFICIENTS = torch.tensor([0.7, -1.3, 0.4, 2.1])
TOKENS = torch.arange(1, 41).reshape(2, 20)


@pytest.fixture
def experts(make_adapter):
    return [read_expert(folder) for folder in mixed_adapters(make_adapter)]


@torch.no_grad()
@pytest.mark.parametrize("coefficients", [COEFFICIENTS, torch.tensor([0.0, 1.0, 0.0, -0.5])])
def test_an_exported_merge_reloads_with_plain_peft_to_the_same_logits(
    model, make_adapter, tmp_path, coefficients
):
    from peft import PeftModel

    folders = mixed_adapters(make_adapter)
    with merged(model, stack_folders(folders), coefficients):
        expected = model(TOKENS).logits
    experts = [read_expert(folder) for folder in folders]
    export_adapter(experts, coefficients, tmp_path / "merge", base="a/base")
    reloaded = PeftModel.from_pretrained(build_model(), tmp_path / "merge")
    torch.testing.assert_close(reloaded(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "merge" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "a/base"
    assert config["r"] == config["lora_alpha"]


def test_an_exported_merge_is_an_expert_again(experts, tmp_path):
    export_adapter(experts, COEFFICIENTS, tmp_path / "merge", base="")
    again = read_expert(tmp_path / "merge")
    for module, factors in again.modules.items():
        expected = 0.0
        for coefficient, expert in zip(COEFFICIENTS, experts, strict=True):
            if module in expert.modules:
                own = expert.modules[module]
                expected = expected + coefficient * own.scale * own.b @ own.a
        found = factors.scale * factors.b @ factors.a
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_comparison_after_a_reload_notices_a_wrong_adapter(model, experts, tmp_path):
    export_adapter(experts, COEFFICIENTS, tmp_path / "merge", base="")
    assert reload_difference(model, experts, COEFFICIENTS, tmp_path / "merge") < 1e-6
    assert reload_difference(model, experts, COEFFICIENTS * 1.01, tmp_path / "merge") > 5e-3
    assert not any("lora" in name for name, _ in model.named_modules())


def test_experts_that_a_merge_leaves_out_are_left_out_of_the_comparison(model, experts, tmp_path):
    alone = torch.tensor([1.0, 0.0, 0.0, 0.0])
    export_adapter(experts, alone, tmp_path / "merge", base="")
    for name in load_file(tmp_path / "merge" / "adapter_model.safetensors"):
        assert "q_proj" in name
    assert reload_difference(model, experts, alone, tmp_path / "merge") < 1e-6


@pytest.mark.parametrize("targets", [["c_proj"], ["c_attn", "c_fc", "wte"]])
def test_the_comparison_knows_how_layers_keep_their_weights(make_adapter, tmp_path, targets):
    """GPT-2's attention.c_proj is a square Conv1D, whose shape does not tell that it is one."""
    settings = {"target_modules": targets, "fan_in_fan_out": True}
    folders = []
    for seed in (0, 1):
        folders.append(make_adapter(f"e{seed}", build_model("gpt2"), seed=seed, **settings))
    experts = [read_expert(folder) for folder in folders]
    coefficients = torch.tensor([0.7, -0.4])
    export_adapter(experts, coefficients, tmp_path / "merge", base="")
    found = reload_difference(build_model("gpt2"), experts, coefficients, tmp_path / "merge")
    assert found < 1e-6
    others = coefficients * 1.01
    assert reload_difference(build_model("gpt2"), experts, others, tmp_path / "merge") > 5e-3


def test_the_comparison_leaves_the_model_as_it_was(model, experts, tmp_path):
    export_adapter(experts, COEFFICIENTS, tmp_path / "merge", base="")
    model.train()
    model.model.layers[0].eval()
    model.lm_head.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    reload_difference(model, experts, COEFFICIENTS, tmp_path / "merge")
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients


def test_files_are_written_whole_and_the_configuration_last(experts, tmp_path, monkeypatch):
    """A crash between the two leaves an adapter that cannot be taken for another merge's."""
    folder = tmp_path / "merge"
    export_adapter(experts, COEFFICIENTS, folder, base="")
    written = []

    def write(path, content):
        written.append(path.name)
        if path.name == "adapter_config.json":
            raise OSError("no space left")
        path.write_bytes(content)

    monkeypatch.setattr("evox_evogm.problems.adapters.export.atomic_write", write)
    with pytest.raises(OSError, match="no space left"):
        export_adapter(experts, -COEFFICIENTS, folder, base="")
    assert written == ["adapter_model.safetensors", "adapter_config.json"]
    assert not (folder / "adapter_config.json").exists()


def test_a_merge_with_nothing_in_it_is_not_exported(make_adapter, tmp_path):
    experts = [read_expert(make_adapter("a"))]
    with pytest.raises(ValueError, match="all 0; the merge is the base model itself"):
        export_adapter(experts, torch.zeros(1), tmp_path / "merge", base="")
    assert not (tmp_path / "merge").exists()
