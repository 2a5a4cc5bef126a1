"""Experts of this base are taken; experts of another base are refused in one sentence."""

import json
import shutil

import pytest
from builders import build_model
from sick_adapters import check_refusal, load_experts, with_tensors

from evox_evogm.problems.adapters.check_fit import check_together


def test_embedding_and_output_layers_fit(make_adapter, model):
    folder = make_adapter("words", target_modules=["embed_tokens", "lm_head"], r=2)
    (expert,) = load_experts([folder], model)
    assert set(expert.base_copies) == {"model.embed_tokens", "lm_head"}


def with_a_bias_in_the_output_layer():
    import transformers as hf

    sizes = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return hf.PhiForCausalLM(hf.PhiConfig(**sizes, num_attention_heads=2)).eval()


def test_the_bias_of_an_output_layer_fits_as_peft_copies_it(make_adapter, edit_tensors):
    model = with_a_bias_in_the_output_layer()
    folder = make_adapter("words", model, target_modules=["lm_head"], r=2)
    (expert,) = load_experts([folder], model)
    assert set(expert.base_copies) == {"lm_head", "lm_head.bias"}
    key = "base_model.model.lm_head.base_layer.bias"
    edit_tensors(folder, lambda tensors: {**tensors, key: tensors[key] + 0.1})
    with pytest.raises(ValueError, match="expected the saved copy of lm_head.bias to equal the"):
        load_experts([folder], model)


def test_conv1d_layers_fit_the_way_they_are_stored(make_adapter, gpt2):
    folder = make_adapter("conv", gpt2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    (expert,) = load_experts([folder], gpt2)
    assert tuple(expert.modules["transformer.h.0.attn.c_attn"].b.shape) == (48, 4)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ("org/tiny", "org/tiny"),
        ("org/tiny", "mirror/Tiny"),
        ("org/tiny", "/models/checkpoint-3"),
        ("/models/anything", "org/tiny"),
        ("", "org/tiny"),
        ("org/tiny", None),
    ],
)
def test_a_base_that_may_be_the_same_is_taken(make_adapter, edit_config, model, own, named):
    folder = make_adapter("code")
    edit_config(folder, base_model_name_or_path=named)
    model.config._name_or_path = own
    assert load_experts([folder], model)


def test_adapters_that_name_a_hub_id_and_its_local_copy_are_of_one_base(
    make_adapter, edit_config, model
):
    bases = {"one": "org/Tiny", "two": "/models/tiny/", "three": None}
    folders = []
    for name, base in bases.items():
        folder = make_adapter(name)
        edit_config(folder, base_model_name_or_path=base)
        folders.append(folder)
    experts = load_experts(folders, model)
    assert [expert.name for expert in experts] == ["one", "two", "three"]


def test_a_tokenizer_that_equals_the_bases_is_taken(make_adapter, model, tokenizer):
    folder = make_adapter("code")
    tokenizer.save_pretrained(folder)
    assert load_experts([folder], model, tokenizer)


# Refusals


def test_a_panic_of_the_tokenizer_library_on_an_adapters_file_is_a_sentence(
    make_adapter, model, tokenizer
):
    folder = make_adapter("sick")
    tokenizer.save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="^expert 'sick' .*: expected a tokenizer in tokenizer"):
        load_experts([folder], model, tokenizer)


def of_another_architecture(bench):
    settings = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    return [bench.make("sick", build_model("gpt2"), **settings)]


def of_a_larger_vocabulary(module):
    def make(bench):
        return [bench.make("sick", build_model(vocab_size=260), target_modules=[module])]

    return make


def in_containers(tensors):
    return {key.replace("self_attn.q_proj", "mlp"): t for key, t in tensors.items()}


def fewer_inputs(tensors):
    return {key: t[:, :8].contiguous() if "lora_A" in key else t for key, t in tensors.items()}


def fewer_outputs(tensors):
    return {key: t[:8].contiguous() if "lora_B" in key else t for key, t in tensors.items()}


def with_tokenizer(change):
    """An adapter with the base's tokenizer, whose file a function has changed."""

    def make(bench):
        folder = bench.make("sick")
        bench.tokenizer.save_pretrained(folder)
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return [bench.make("healthy"), folder]

    return make


def one_more_token(content):
    first = content["added_tokens"][0]
    content["added_tokens"].append({**first, "id": 257, "content": "<more>"})


def two_swapped_tokens(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def of_another_version(content):
    content["model"] = {"type": "unheard of"}


def with_retrained_vocabulary(bench):
    folder = bench.make("sick", target_modules=["embed_tokens"])
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    bench.edit_tensors(folder, lambda tensors: {**tensors, key: tensors[key] + 0.1})
    return [folder]


SHAPES = r"expected \(inputs, outputs\)"
Q = r"model\.layers\.0\.self_attn\.q_proj"
LAYER = "expected a Linear, Conv1D or Embedding layer"
VOCABULARY = "expected the vocabulary of the base, found a tokenizer that differs in"
REFUSED = {
    "another architecture": (
        of_another_architecture,
        f"{LAYER} 'transformer.h.0.attn.c_attn' in the base, found no such module; "
        "the adapter belongs to another base model",
    ),
    "a container": (
        with_tensors(in_containers),
        f"{LAYER} 'model.layers.0.mlp' in the base, found a LlamaMLP",
    ),
    "fewer inputs": (
        with_tensors(fewer_inputs),
        rf"{SHAPES} \(16, 16\) in {Q}, found \(8, 16\); it belongs to another base model",
    ),
    "fewer outputs": (
        with_tensors(fewer_outputs),
        rf"{SHAPES} \(16, 16\) in {Q}, found \(16, 8\); it belongs to another base model",
    ),
    "one more token": (with_tokenizer(one_more_token), f"{VOCABULARY} 1 tokens; use the base"),
    "two swapped tokens": (
        with_tokenizer(two_swapped_tokens),
        f"{VOCABULARY} 4 tokens; use the base",
    ),
    "an unreadable tokenizer": (
        with_tokenizer(of_another_version),
        "expected a tokenizer in tokenizer.json, found .+",
    ),
    "a larger embedding": (
        of_a_larger_vocabulary("embed_tokens"),
        rf"{SHAPES} \(257, 16\) in model\.embed_tokens, found \(260, 16\); its vocabulary differs",
    ),
    "a larger output layer": (
        of_a_larger_vocabulary("lm_head"),
        rf"{SHAPES} \(16, 257\) in lm_head, found \(16, 260\); its vocabulary differs",
    ),
    "a retrained vocabulary": (
        with_retrained_vocabulary,
        "expected the saved copy of model.embed_tokens to equal the base, found other weights; "
        "train the adapter without changing the vocabulary",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_of_another_base_is_refused(bench, case):
    make, message = REFUSED[case]
    check_refusal(bench, make(bench), message)


def test_folders_of_one_name_are_refused(bench):
    one = bench.make("sick")
    other = one.parent.parent / "other" / "sick"
    shutil.copytree(one, other)
    message = (
        r"expected different names, found 'sick' 2 times \(.*experts/sick, .*other/sick\); "
        "give them names"
    )
    check_refusal(bench, [one, bench.make("healthy"), other], message)


def test_equal_names_that_were_given_are_refused(bench):
    message = (
        r"expected different names, found 'sick' 2 times \(.*experts/one, .*experts/two\); "
        "give them names"
    )
    folders = [bench.make("one"), bench.make("two")]
    check_refusal(bench, folders, message, names=["sick", "sick"])


def test_an_empty_list_of_experts_is_refused():
    message = "^experts: expected at least one adapter folder, found none$"
    with pytest.raises(ValueError, match=message):
        check_together([])
