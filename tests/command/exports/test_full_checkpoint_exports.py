"""Merges with whole models as whole models, loaded by plain transformers."""

import pytest
import torch
from builders import build_model
from builders_checkpoints import changed
from safetensors.torch import load_file

from evox_evogm.command.exports import export_compressed, export_full_model
from evox_evogm.command.exports.job import Job
from evox_evogm.command.exports.mergekit_recipe import make_recipe
from evox_evogm.problems import Example, LoRAMergeProblem, Task

TASK = Task("sums", "1", "gold_log_probability", (Example("0", "1+1=", "2"),))
pytestmark = pytest.mark.language_model


@pytest.fixture
def whole(tmp_path, tokenizer):
    """A problem of two whole models in bfloat16, with a coefficient per layer."""
    build_model().bfloat16().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    folders = []
    for seed, (name, only) in enumerate({"first": "", "second": "mlp"}.items()):
        model = changed(build_model(), seed, only=only).bfloat16()
        model.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
    base = str(tmp_path / "base")
    return LoRAMergeProblem(base, folders, [TASK], dtype=torch.bfloat16, groups="layer")


def test_an_expert_by_itself_comes_out_bit_for_bit(whole, tmp_path):
    from transformers import AutoModelForCausalLM

    coefficients = torch.tensor([1.0] * 3 + [0.0] * 3)
    exported = export_full_model(whole, coefficients, tmp_path / "out", max_shard_size="20KB")
    assert exported.relative_error == 0 and exported.logits_difference == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    for name, value in load_file(tmp_path / "first" / "model.safetensors").items():
        assert loaded[name].dtype == torch.bfloat16 and torch.equal(loaded[name], value)


def test_a_merge_by_layer_is_rounded_once(whole, tmp_path):
    coefficients = torch.tensor([0.5, -0.25, 0.75, 0.0, 1.5, -1.0])
    export_full_model(whole, coefficients, tmp_path / "out", dtype="float32")
    files = {name: tmp_path / name / "model.safetensors" for name in ("base", "first", "second")}
    base, first, second = (load_file(file) for file in files.values())
    places = {"model.layers.0": 1, "model.layers.1": 2}
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        place = places.get(name[:14], 0)
        own = base[name].double()
        one, two = coefficients[place].double(), coefficients[3 + place].double()
        expected = own + one * (first[name].double() - own) + two * (second[name].double() - own)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_a_recipe_names_whole_models_and_weighs_their_tensors(whole, tmp_path):
    coefficients = torch.tensor([0.5, -0.25, 0.75, 0.0, 1.5, -1.0])
    recipe = make_recipe(Job(whole, coefficients, {}), "bfloat16")
    assert recipe["base_model"] == str(tmp_path / "base")
    assert [model["model"] for model in recipe["models"]] == [
        str(tmp_path / "first"),
        str(tmp_path / "second"),
    ]
    weights = recipe["models"][1]["parameters"]["weight"]
    by_tensor = {entry.get("filter"): entry["value"] for entry in weights}
    assert by_tensor["model.layers.1.mlp.up_proj.weight"] == -1.0 and by_tensor[None] == 0.0
    assert len(by_tensor) == 7
    weights = recipe["models"][0]["parameters"]["weight"]
    assert {"filter": "model.norm.weight", "value": 0.5} in weights


def test_an_adapter_of_lower_rank_is_refused_too(whole, tmp_path):
    with pytest.raises(ValueError, match="found the full checkpoint 'first', whose difference"):
        export_compressed(whole, torch.ones(6), tmp_path / "out", rank=4)
