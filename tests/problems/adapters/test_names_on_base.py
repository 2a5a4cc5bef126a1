"""Adapters are read under the names that plain peft and transformers read; others are refused."""

import json
import re

import pytest
import torch
from builders import build_model
from other_bases import (
    build_gemma3,
    build_gemma3_text,
    build_qwen2_vl,
    build_qwen3_5,
    build_qwen3_5_text,
    logits_of,
    merged_logits,
    peft_logits,
)
from safetensors.torch import load_file
from sick_adapters import fit_folders, load_experts

pytestmark = pytest.mark.language_model

LANGUAGE_LAYERS = r".*language_model.*(q_proj|v_proj)"


def replacing(old, new):
    return lambda key: key.replace(old, new)


@pytest.fixture
def renamed(make_adapter, edit_config, edit_tensors):
    """A function that makes an adapter of a base, and gives its tensors other names."""

    def make(model, rename, **settings):
        folder = make_adapter("renamed", model, **settings)
        # The names that peft targets are then found under any prefix. Tensors that are not in the
        # file are 0.
        edit_config(folder, target_modules=["q_proj", "v_proj"], init_lora_weights=True)
        edit_tensors(folder, lambda tensors: {rename(key): t for key, t in tensors.items()})
        return folder

    return make


READ = {
    "the adapter's name": (build_model, replacing(".weight", ".default.weight"), {}),
    "before transformers 4.52": (
        build_gemma3,
        replacing("model.language_model.", "language_model.model."),
        {"target_modules": LANGUAGE_LAYERS},
    ),
    "of transformers 5.10": (
        build_gemma3,
        replacing("model.language_model.", "model.language_model.model."),
        {"target_modules": LANGUAGE_LAYERS},
    ),
    "of today": (build_gemma3, lambda key: key, {"target_modules": LANGUAGE_LAYERS}),
}


@pytest.mark.parametrize("case", READ)
def test_names_that_plain_peft_reads_are_read(renamed, case):
    build, rename, settings = READ[case]
    folder = renamed(build(), rename, **settings)
    expected = peft_logits(build(), folder)
    assert not torch.allclose(expected, logits_of(build()), atol=1e-2)
    torch.testing.assert_close(merged_logits(build(), folder), expected, rtol=1e-4, atol=1e-4)


def test_the_adapters_name_is_read_in_the_tensors_of_an_embedding(
    make_adapter, edit_tensors, model
):
    folder = make_adapter("words", target_modules=["embed_tokens", "lm_head"])
    before = load_experts([folder], model)[0].modules

    def rename(key):
        return re.sub(r"(lora_\w*[AB])(\.weight)?$", r"\1.other\2", key)

    edit_tensors(folder, lambda tensors: {rename(key): t for key, t in tensors.items()})
    after = load_experts([folder], model)[0].modules
    assert set(after) == {"model.embed_tokens", "lm_head"}
    for name, factors in after.items():
        assert torch.equal(factors.a, before[name].a)
        assert factors.embedding == before[name].embedding


OF_TRANSFORMERS = {
    "Qwen3.5's published class on its class of texts": (
        build_qwen3_5,
        build_qwen3_5_text,
        lambda key: key,
    ),
    "Qwen2.5-VL before transformers 4.52": (
        build_qwen2_vl,
        build_qwen2_vl,
        replacing("model.language_model.", "model."),
    ),
}


@pytest.mark.parametrize("case", OF_TRANSFORMERS)
def test_names_that_transformers_turns_into_those_of_the_base_are_read(renamed, case):
    trained_on, build, rename = OF_TRANSFORMERS[case]
    folder = renamed(trained_on(), rename)
    by_transformers = build()
    by_transformers.load_adapter(str(folder))
    expected = logits_of(by_transformers)
    assert not torch.allclose(expected, logits_of(build()), atol=1e-2)
    torch.testing.assert_close(merged_logits(build(), folder), expected, rtol=1e-4, atol=1e-4)


def test_modules_of_images_are_left_out_where_the_class_has_only_texts(make_adapter, edit_config):
    folder = make_adapter("both", build_qwen3_5(), target_modules=["qkv", "q_proj"])
    edit_config(folder, target_modules=["q_proj"], init_lora_weights=True)
    fit = fit_folders([folder], build_qwen3_5_text())
    assert list(fit.experts[0].modules) == ["model.layers.3.self_attn.q_proj"]
    assert "left out 1 modules, as 'model.visual.blocks.0.attn.qkv'" in fit.notes[0]
    by_transformers = build_qwen3_5_text()
    by_transformers.load_adapter(str(folder))
    found = merged_logits(build_qwen3_5_text(), folder)
    torch.testing.assert_close(found, logits_of(by_transformers), rtol=1e-4, atol=1e-4)


def test_an_adapter_of_images_alone_is_refused_where_the_class_has_only_texts(make_adapter):
    folder = make_adapter("images", build_qwen3_5(), target_modules=["qkv"])
    with pytest.raises(ValueError, match="'model.visual.blocks.0.attn.qkv' in the base, found no"):
        load_experts([folder], build_qwen3_5_text())


PREFIX = "base_model.model."
COMPILED = "from a model compiled by torch.compile; plain peft does not load it"
REFUSED = {
    "compiled": (lambda key: f"_orig_mod.{key}", COMPILED),
    "compiled inside": (replacing(PREFIX, f"{PREFIX}_orig_mod."), COMPILED),
    "FSDP": (
        replacing(".self_attn", "._fsdp_wrapped_module.self_attn"),
        "from a model wrapped by FSDP; plain peft does not load it",
    ),
    "checkpoints": (
        replacing(".self_attn", "._checkpoint_wrapped_module.self_attn"),
        "wrapped for activation checkpoints",
    ),
    "distributed": (
        lambda key: f"module.{key}",
        "from a model wrapped by DistributedDataParallel or DeepSpeed; plain peft does not",
    ),
    "distributed inside": (replacing(PREFIX, f"{PREFIX}module."), "DistributedDataParallel"),
    "nested": (lambda key: PREFIX + key, "from a PeftModel inside a PeftModel"),
    "AutoModel": (
        replacing(f"{PREFIX}model.", PREFIX),
        "the base has 'model.layers.0.self_attn.q_proj': the adapter was trained on a model "
        "without 'model.' in its names, as AutoModel loads it",
    ),
    "MLX": (
        lambda key: key.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b"),
        "from MLX, whose factors are transposed; convert the adapter",
    ),
    "no prefix": (lambda key: key.removeprefix(PREFIX), f"without the '{PREFIX}' that peft"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_plain_peft_leaves_unread_are_refused_with_their_cause(renamed, case):
    rename, message = REFUSED[case]
    folder = renamed(build_model(), rename)
    assert torch.equal(peft_logits(build_model(), folder), logits_of(build_model()))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_experts([folder], build_model())
    assert "another base" not in str(caught.value)


OTHER_CLASS = "the adapter was trained on another class of this model, a text-only or a multimodal"


@pytest.mark.parametrize(
    ("trained_on", "build"), [(build_gemma3, build_gemma3_text), (build_gemma3_text, build_gemma3)]
)
def test_an_adapter_of_another_class_is_refused_where_peft_does_not_load_it(
    make_adapter, edit_config, trained_on, build
):
    folder = make_adapter("other", trained_on(), target_modules=["q_proj"], layers_to_transform=[0])
    edit_config(folder, layers_to_transform=None)
    with pytest.raises(ValueError, match=OTHER_CLASS):
        load_experts([folder], build())


def test_patterns_that_fit_only_the_old_names_are_refused(renamed):
    """Plain peft would take the default for the new names."""
    old_name = r"language_model\.model\.layers\.0\.self_attn\.q_proj"
    rename = replacing("model.language_model.", "language_model.model.")
    folder = renamed(build_gemma3(), rename, target_modules=LANGUAGE_LAYERS)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["alpha_pattern"] = {old_name: 3}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    message = r"found rank and alpha \(4, 3\) by the old name and \(4, 8\) by the new one"
    with pytest.raises(ValueError, match=message):
        load_experts([folder], build_gemma3())


def test_a_module_under_two_names_is_refused(make_adapter, edit_tensors):
    folder = make_adapter("twice", build_gemma3(), target_modules=LANGUAGE_LAYERS)

    def add_old_names(tensors):
        old = {}
        for key, tensor in tensors.items():
            old_key = key.replace("model.language_model.", "language_model.model.")
            old[old_key] = tensor.clone()
        return tensors | old

    edit_tensors(folder, add_old_names)
    with pytest.raises(ValueError, match="expected one lora_A and lora_B for .*, found two"):
        load_experts([folder], build_gemma3())


def test_the_tensors_of_two_adapters_in_one_file_are_refused(make_adapter, edit_tensors, model):
    folder = make_adapter("two")

    def rename(tensors):
        renamed = {}
        for key, tensor in tensors.items():
            name = "math" if "q_proj" in key else "code"
            renamed[key.replace(".weight", f".{name}.weight")] = tensor
        return renamed

    edit_tensors(folder, rename)
    with pytest.raises(ValueError, match="found the names code, math in them; save each adapter"):
        load_experts([folder], model)


@pytest.mark.parametrize("shape", [(0,), (64,), (0, 16)])
def test_shards_that_were_saved_alone_are_refused(make_adapter, edit_tensors, model, shape):
    folder = make_adapter("shards")
    edit_tensors(folder, lambda tensors: {key: torch.zeros(shape) for key in tensors})
    with pytest.raises(ValueError, match="a shard of DeepSpeed ZeRO-3 or FSDP, saved without the"):
        load_experts([folder], model)


def test_names_of_today_are_not_touched(make_adapter):
    """What the base has is taken as it is, without the rules of transformers."""
    folder = make_adapter("today", build_gemma3(), target_modules=LANGUAGE_LAYERS)
    expected = set()
    for key in load_file(folder / "adapter_model.safetensors"):
        expected.add(re.sub(r"\.lora_.*", "", key.removeprefix(PREFIX)))
    assert set(load_experts([folder], build_gemma3())[0].modules) == expected
