"""Recipes for mergekit. Where it is installed a slow test runs them."""

import json
import shlex
import subprocess
import sys
from copy import copy
from pathlib import Path

import pytest
import torch
import yaml
from builders import build_model, build_tokenizer
from builders_images import TARGETS, build_image_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evox_evogm.command.exports import export_mergekit_recipe
from evox_evogm.command.exports.mergekit_recipe import find_command
from evox_evogm.problems import LoRAMergeProblem, image_task

COEFFICIENTS = torch.tensor([0.7, -1.3])
NOWHERE = "no-such-mergekit"


def read(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def test_a_recipe_is_task_arithmetic_over_the_adapters(shared, problem, tmp_path):
    out = tmp_path / "recipe"
    exported = export_mergekit_recipe(problem, COEFFICIENTS, out, mergekit=NOWHERE)
    base = str((shared.folder / "base").resolve())
    recipe = read(out)
    assert recipe["merge_method"] == "task_arithmetic" and recipe["base_model"] == base
    assert recipe["parameters"] == {"normalize": False} and recipe["dtype"] == "float32"
    weights = {entry["model"]: entry["parameters"]["weight"] for entry in recipe["models"]}
    assert weights == pytest.approx(
        {
            f"{base}+{shared.folder / 'experts' / 'first'}": 0.7,
            f"{base}+{shared.folder / 'experts' / 'second'}": -1.3,
        }
    )
    assert not exported.checked and f"{NOWHERE} was not found here" in exported.notes[0]
    assert "mergekit-yaml recipe.yaml merged" in (out / "README.md").read_text()


def test_an_expert_that_the_merge_leaves_out_is_not_named(problem, tmp_path):
    out = tmp_path / "recipe"
    export_mergekit_recipe(
        problem, torch.tensor([0.0, 2.0]), out, mergekit=NOWHERE, dtype="bfloat16"
    )
    recipe = read(out)
    assert len(recipe["models"]) == 1 and recipe["models"][0]["model"].endswith("second")
    assert recipe["out_dtype"] == "bfloat16"


def in_groups(shared, groups):
    """The shared problem with several groups of modules."""
    folders = [expert.folder for expert in shared.problem.experts]
    return LoRAMergeProblem(
        str(shared.folder / "base"),
        folders,
        shared.tasks.dev,
        groups=groups,
        mode="unmerged",
        dtype=torch.float32,
    )


@pytest.mark.lengthy
def test_with_groups_each_module_has_its_weight(shared, tmp_path):
    problem = in_groups(shared, "layer")
    coefficients = torch.tensor([0.1, 0.2, 0.3, 0.4])  # first in two layers, second in two layers
    export_mergekit_recipe(problem, coefficients, tmp_path / "recipe", mergekit=NOWHERE)
    first, second = read(tmp_path / "recipe")["models"]
    *filters, rest = first["parameters"]["weight"]
    assert rest == {"value": 0.0}
    found = {entry["filter"]: entry["value"] for entry in filters}
    assert found == pytest.approx(
        {
            "model.layers.0.self_attn.q_proj.weight": 0.1,
            "model.layers.0.self_attn.v_proj.weight": 0.1,
            "model.layers.1.self_attn.q_proj.weight": 0.2,
            "model.layers.1.self_attn.v_proj.weight": 0.2,
        }
    )
    assert second["parameters"]["weight"][-2] == {
        "filter": "model.layers.1.self_attn.q_proj.weight",
        "value": pytest.approx(0.4),
    }


def test_regressed_experts_are_refused(problem, tmp_path):
    regressed = copy(problem)
    regressed.regmean = "weights"
    with pytest.raises(
        ValueError, match="found experts regressed by RegMean, which are in no file"
    ):
        export_mergekit_recipe(regressed, COEFFICIENTS, tmp_path / "recipe", mergekit=NOWHERE)
    assert not (tmp_path / "recipe").exists()


def test_a_coefficient_for_each_channel_is_refused(shared, tmp_path):
    problem = in_groups(shared, "channel")
    coefficients = torch.ones(problem.n_coefficients)
    with pytest.raises(ValueError, match="one coefficient for each module, found one for each cha"):
        export_mergekit_recipe(problem, coefficients, tmp_path / "recipe", mergekit=NOWHERE)
    assert not (tmp_path / "recipe").exists()


def test_paths_that_mergekit_would_split_are_refused(problem, tmp_path):
    from dataclasses import replace

    moved = copy(problem)
    first, second = problem.experts
    moved.experts = [replace(first, folder=Path("/tmp/a+b")), second]
    with pytest.raises(ValueError, match=r"expected paths without '\+@', .*, found '\+'"):
        export_mergekit_recipe(moved, COEFFICIENTS, tmp_path / "recipe", mergekit=NOWHERE)


@pytest.mark.language_model
def test_a_merge_of_image_experts_is_refused(make_adapter, tmp_path):
    model = build_image_model()
    options = {"target_modules": TARGETS["vit"][0], "task_type": None}
    folder = make_adapter("one", model, **options)
    head = torch.nn.Linear(16, 3)
    task = image_task("birds", torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), head)
    problem = LoRAMergeProblem(model, [folder], [task])
    with pytest.raises(ValueError, match="^mergekit: expected a language model, found an image"):
        export_mergekit_recipe(problem, torch.ones(1), tmp_path / "recipe", mergekit=NOWHERE)
    assert not (tmp_path / "recipe").exists()


@pytest.mark.slow
def test_a_weight_that_two_layers_share_is_refused(make_adapter, tmp_path, shared):
    """peft would merge the change into both of them."""
    model = build_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "tied")
    build_tokenizer().save_pretrained(tmp_path / "tied")
    folder = make_adapter("one", target_modules=["embed_tokens"])
    problem = LoRAMergeProblem(
        str(tmp_path / "tied"), [folder], shared.tasks.dev, mode="unmerged", dtype=torch.float32
    )
    with pytest.raises(ValueError, match="whose weight the output layer and the embedding share"):
        export_mergekit_recipe(problem, torch.ones(1), tmp_path / "recipe", mergekit=NOWHERE)


def test_a_base_without_a_folder_is_refused(shared, problem, tmp_path):
    nameless = LoRAMergeProblem(
        build_model(),
        [expert.folder for expert in problem.experts],
        shared.tasks.dev,
        tokenizer=build_tokenizer(),
        mode="unmerged",
    )
    with pytest.raises(ValueError, match="expected a base that was loaded from a folder"):
        export_mergekit_recipe(nameless, COEFFICIENTS, tmp_path / "recipe", mergekit=NOWHERE)


def test_the_command_is_found_beside_python_and_by_its_path():
    beside = Path(sys.executable).name
    assert find_command(beside) is not None and find_command(sys.executable) == [sys.executable]
    assert find_command(NOWHERE) is None


@pytest.mark.slow
@pytest.mark.skipif(find_command("mergekit-yaml") is None, reason="mergekit is not installed")
@pytest.mark.parametrize("groups", ["expert", "module"])
def test_mergekit_makes_the_merge(shared, tmp_path, groups):
    problem = in_groups(shared, groups)
    torch.manual_seed(0)
    coefficients = torch.randn(problem.n_coefficients)
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        exported = export_mergekit_recipe(problem, coefficients, out, dtype=dtype)
        assert exported.checked
        assert exported.relative_error < (1e-5 if dtype == "float32" else 5e-2)


@pytest.mark.slow
@pytest.mark.skipif(find_command("mergekit-yaml") is None, reason="mergekit is not installed")
def test_the_command_of_the_card_makes_the_sum_of_base_and_adapters(shared, problem, tmp_path):
    """What is right is computed by hand from the files of base and adapters."""
    out = tmp_path / "recipe"
    exported = export_mergekit_recipe(problem, COEFFICIENTS, out, mergekit=NOWHERE)
    _, *words = shlex.split(exported.serve)
    command = [*find_command("mergekit-yaml"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    right = AutoModelForCausalLM.from_pretrained(shared.folder / "base", dtype=torch.float32)
    weights = dict(right.named_parameters())
    for name, coefficient in zip(("first", "second"), COEFFICIENTS.tolist(), strict=True):
        folder = shared.folder / "experts" / name
        config = json.loads((folder / "adapter_config.json").read_text())
        factors = load_file(folder / "adapter_model.safetensors")
        scale = coefficient * config["lora_alpha"] / config["r"]
        for key, b in factors.items():
            if key.endswith(".lora_B.weight"):
                a = factors[key.replace("lora_B", "lora_A")]
                module = key.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
                weights[f"{module}.weight"].data += scale * b @ a
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        expected, found = (model(tokens).logits for model in (right, made))
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
