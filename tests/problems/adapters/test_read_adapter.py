"""Adapters as peft writes them are read with the scale that peft gives them; every other kind is refused in a sentence."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from builders import build_model
from safetensors.torch import load_file, save_file

from evox_evogm.problems.adapters.read_adapter import (
    CONFIG,
    WEIGHTS,
    check_fit,
    check_together,
    read_expert,
)

LAYER = "model.layers.{}.self_attn.{}_proj"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def scales(expert):
    return {module: factors.scale for module, factors in expert.modules.items()}


def load(folders, model, tokenizer=None, names=None):
    """The way of an adapter into a problem."""
    experts = [
        read_expert(folder, name=name)
        for folder, name in zip(folders, names or [None] * len(folders), strict=True)
    ]
    check_together(experts)
    check_fit(experts, model, tokenizer)
    return experts


def test_an_adapter_is_read_with_its_name_its_base_and_its_tensors(make_adapter, edit_config):
    folder = make_adapter("code", r=3, lora_alpha=6)
    edit_config(folder, base_model_name_or_path="org/tiny")
    expert = read_expert(folder)
    assert (expert.name, expert.folder, expert.base, expert.base_copies) == (
        "code",
        folder,
        "org/tiny",
        (),
    )
    assert read_expert(folder, name="mine").name == "mine"
    assert sorted(expert.modules) == sorted(
        LAYER.format(layer, kind) for layer in (0, 1) for kind in "qv"
    )
    factors, tensors = expert.modules[LAYER.format(0, "q")], load_file(folder / WEIGHTS)
    assert torch.equal(factors.a, tensors[KEY.format("A")])  # (3, 16)
    assert torch.equal(factors.b, tensors[KEY.format("B")])  # (16, 3)
    assert (tuple(factors.a.shape), tuple(factors.b.shape), factors.embedding) == (
        (3, 16),
        (16, 3),
        False,
    )


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 8, "lora_alpha": 4}, 0.5),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 2, "lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(2)),
    ],
)
def test_the_scale_is_alpha_over_the_rank_or_over_its_root(make_adapter, settings, scale):
    assert set(scales(read_expert(make_adapter("code", **settings))).values()) == {scale}


@pytest.mark.parametrize(
    ("rslora", "expected"),
    [
        (False, {(0, "q"): 8 / 9, (1, "q"): 8 / 4, (0, "v"): 8 / 2, (1, "v"): 5 / 2}),
        (True, {(0, "q"): 8 / 3, (1, "q"): 8 / 2, (0, "v"): 8 / 2**0.5, (1, "v"): 5 / 2**0.5}),
    ],
)
def test_patterns_give_single_modules_their_own_rank_and_alpha(make_adapter, rslora, expected):
    folder = make_adapter(
        "code",
        r=4,
        lora_alpha=8,
        use_rslora=rslora,
        # A pattern is the end of a name: "proj" alone is the end of none.
        rank_pattern={"proj": 7, "v_proj": 2, "layers.0.self_attn.q_proj": 9},
        alpha_pattern={r".*\.1\.self_attn\.v_proj": 5, "attn.q_proj": 1},
    )
    expert = read_expert(folder)
    assert scales(expert) == pytest.approx(
        {LAYER.format(*module): scale for module, scale in expected.items()}
    )
    ranks = {(0, "q"): 9, (1, "q"): 4, (0, "v"): 2, (1, "v"): 2}
    assert {name: f.a.shape[0] for name, f in expert.modules.items()} == {
        LAYER.format(*m): r for m, r in ranks.items()
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 3, "lora_alpha": 5},
        {"r": 3, "lora_alpha": 5, "use_rslora": True},
        # The first of two patterns counts, and peft writes them in alphabetical order.
        {
            "rank_pattern": {"1.self_attn.q_proj": 6, "q_proj": 2},
            "alpha_pattern": {"1.self_attn.v_proj": 3, "v_proj": 4},
        },
        {"use_rslora": True, "rank_pattern": {".*1.*": 5}, "alpha_pattern": {"q_proj|v_proj": 7}},
    ],
)
def test_scales_are_those_that_peft_gives_the_same_adapter(make_adapter, settings):
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    folder = make_adapter("code", **settings)
    layers = PeftModel.from_pretrained(build_model(), folder).base_model.model.named_modules()
    expected = {
        name: layer.scaling["default"] for name, layer in layers if isinstance(layer, LoraLayer)
    }
    assert scales(read_expert(folder)) == pytest.approx(expected)
    assert len(expected) == 4


def test_tensors_stored_in_half_precision_are_read_in_float32(make_adapter, edit_tensors):
    folder = make_adapter("code")
    edit_tensors(
        folder, lambda tensors: {key: tensor.bfloat16() for key, tensor in tensors.items()}
    )
    factors = read_expert(folder).modules[LAYER.format(0, "q")]
    assert (factors.a.dtype, factors.b.dtype) == (torch.float32, torch.float32)
    assert torch.equal(factors.a, load_file(folder / WEIGHTS)[KEY.format("A")].float())


@pytest.mark.parametrize("patterns", [{"rank_pattern": None, "alpha_pattern": None}, {}])
def test_settings_that_older_versions_of_peft_left_out_have_their_defaults(
    make_adapter, model, patterns
):
    folder = make_adapter("code")
    needed = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (folder / CONFIG).write_text(json.dumps(needed | patterns))
    (expert,) = load([folder], model)
    assert set(scales(expert).values()) == {2.0}
    assert expert.base == ""


@pytest.mark.parametrize("initialisation", [True, False, "gaussian", "orthogonal", "eva", "true"])
def test_an_initialisation_that_leaves_the_base_as_it_is_is_read(
    make_adapter, edit_config, initialisation
):
    folder = make_adapter("code")
    edit_config(folder, init_lora_weights=initialisation)
    assert len(read_expert(folder).modules) == 4


def test_embedding_and_output_layers_are_read_and_fit(make_adapter, model):
    (expert,) = load(
        [make_adapter("words", target_modules=["embed_tokens", "lm_head"], r=2)], model
    )
    embedding, head = expert.modules["model.embed_tokens"], expert.modules["lm_head"]
    assert (embedding.embedding, head.embedding) == (True, False)
    assert [tuple(t.shape) for t in (embedding.a, embedding.b, head.a, head.b)] == [
        (2, 257),
        (16, 2),
        (2, 16),
        (257, 2),
    ]
    assert set(expert.base_copies) == {"model.embed_tokens", "lm_head"}


def test_conv1d_layers_fit_the_way_they_are_stored(make_adapter, gpt2):
    folder = make_adapter("conv", gpt2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    (expert,) = load([folder], gpt2)
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
    assert load([folder], model)


def test_adapters_that_name_a_hub_id_and_its_local_copy_are_of_one_base(
    make_adapter, edit_config, model
):
    folders = [make_adapter(name) for name in ("one", "two", "three")]
    for folder, base in zip(folders, ("org/Tiny", "/models/tiny/", None), strict=True):
        edit_config(folder, base_model_name_or_path=base)
    assert [expert.name for expert in load(folders, model)] == ["one", "two", "three"]


def test_a_tokenizer_that_equals_the_bases_is_taken(make_adapter, model, tokenizer):
    folder = make_adapter("code")
    tokenizer.save_pretrained(folder)
    assert load([folder], model, tokenizer)


# Refusals. Each case makes an adapter "sick" in its own way, and states what is said about it.


@pytest.fixture
def bench(make_adapter, edit_config, edit_tensors, model, tokenizer):
    return SimpleNamespace(
        make=make_adapter,
        config=edit_config,
        tensors=edit_tensors,
        model=model,
        tokenizer=tokenizer,
        names=None,
    )


def trained(**settings):
    """An adapter that peft made with these settings."""
    return lambda bench: [bench.make("healthy"), bench.make("sick", **settings)]


def configured(**settings):
    """An adapter with these settings in its configuration."""

    def make(bench):
        folder = bench.make("sick")
        bench.config(folder, **settings)
        return [bench.make("healthy"), folder]

    return make


def rewritten(change):
    """An adapter with other tensors."""

    def make(bench):
        folder = bench.make("sick")
        bench.tensors(folder, change)
        return [bench.make("healthy"), folder]

    return make


def with_files(change):
    """An adapter with other files."""

    def make(bench):
        folder = bench.make("sick")
        change(folder)
        return [bench.make("healthy"), folder]

    return make


def spoilt(value):
    def change(tensors):
        tensors[KEY.format("B")][1, 2] = value
        return tensors

    return rewritten(change)


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def truncated(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def pointer(folder):
    (folder / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )


def other_bases(bench):
    folders = [bench.make("healthy"), bench.make("sick")]
    bench.config(folders[0], base_model_name_or_path="org/tiny")
    bench.config(folders[1], base_model_name_or_path="org/huge")
    return folders


def other_hub_id(bench):
    folder = bench.make("sick")
    bench.config(folder, base_model_name_or_path="org/huge")
    bench.model.config._name_or_path = "org/tiny"
    return [folder]


def other_architecture(bench):
    return [bench.make("sick", build_model("gpt2"), target_modules=["c_attn"], fan_in_fan_out=True)]


def other_width(tensors):
    return {
        key: tensor[:, :8].contiguous() if "lora_A" in key else tensor
        for key, tensor in tensors.items()
    }


def transposed_width(tensors):
    return {
        key: tensor[:8].contiguous() if "lora_B" in key else tensor
        for key, tensor in tensors.items()
    }


def other_tokenizer(bench):
    folder = bench.make("sick")
    bench.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 257, "content": "<more>"})
    path.write_text(json.dumps(content))
    return [bench.make("healthy"), folder]


def swapped_tokens(bench):
    """A vocabulary of the same size in another order."""
    folder = bench.make("sick")
    bench.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    return [bench.make("healthy"), folder]


def larger_vocabulary(*modules):
    return lambda bench: [
        bench.make("sick", build_model(vocab_size=260), target_modules=list(modules))
    ]


def retrained_vocabulary(bench):
    folder = bench.make("sick", target_modules=["embed_tokens"])
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    bench.tensors(folder, lambda tensors: {**tensors, key: tensors[key] + 0.1})
    return [folder]


def same_names(bench):
    one = bench.make("sick")
    other = one.parent.parent / "other" / "sick"
    shutil.copytree(one, other)
    return [one, bench.make("healthy"), other]


def same_given_names(bench):
    bench.names = ["sick", "sick"]
    return [bench.make("one"), bench.make("two")]


PLAIN = "expected plain LoRA, found"
CHANGED = "expected an adapter of the unchanged base, found init_lora_weights"
CONVERT = "which changes it; convert it with peft's path_initial_model_for_weight_conversion"
LEAVE = "leave this adapter out or retrain it"
RANKS = f"{CONFIG} and {WEIGHTS} do not belong together"
SHAPES = r"expected \(inputs, outputs\)"
Q = r"model\.layers\.0\.self_attn\.q_proj"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        # Kinds of adapter that are not W + s B A.
        (trained(use_dora=True), rf"{PLAIN} DoRA \(use_dora is set\); {LEAVE}"),
        (
            trained(lora_bias=True, init_lora_weights=True),
            rf"{PLAIN} lora_bias \(lora_bias is set\); {LEAVE}",
        ),
        (
            trained(bias="all"),
            "expected bias 'none', found 'all'; train the adapter without biases",
        ),
        (
            trained(bias="lora_only"),
            "expected bias 'none', found 'lora_only'; train the adapter without biases",
        ),
        (
            trained(modules_to_save=["lm_head"]),
            rf"{PLAIN} modules_to_save \(modules_to_save is set\); {LEAVE}",
        ),
        (trained(trainable_token_indices=[3, 5]), rf"{PLAIN} trainable_token_indices .*; {LEAVE}"),
        (trained(layer_replication=[[0, 2], [1, 2]]), rf"{PLAIN} layer_replication .*; {LEAVE}"),
        (configured(use_qalora=True), rf"{PLAIN} QALoRA .*; {LEAVE}"),
        (configured(alora_invocation_tokens=[1]), rf"{PLAIN} activated LoRA .*; {LEAVE}"),
        (
            configured(target_parameters=["experts.weight"]),
            rf"{PLAIN} target_parameters .*; {LEAVE}",
        ),
        (
            configured(peft_type="IA3"),
            "expected peft_type LORA, found 'IA3'; only LoRA adapters can be merged",
        ),
        (configured(peft_type="ADALORA"), "expected peft_type LORA, found 'ADALORA'"),
        (configured(peft_type=None), "expected peft_type LORA, found None"),
        # Initialisations that take their part out of the base.
        (trained(init_lora_weights="pissa"), f"{CHANGED} 'pissa', {CONVERT}"),
        (configured(init_lora_weights="pissa_niter_4"), f"{CHANGED} 'pissa_niter_4', {CONVERT}"),
        (trained(init_lora_weights="olora"), f"{CHANGED} 'olora', {CONVERT}"),
        (configured(init_lora_weights="corda"), f"{CHANGED} 'corda', {CONVERT}"),
        (configured(init_lora_weights="loftq"), f"{CHANGED} 'loftq', {CONVERT}"),
        (configured(init_lora_weights="lora_ga"), f"{CHANGED} 'lora_ga', {CONVERT}"),
        # Another base.
        (
            other_bases,
            r"same base model as expert 'healthy' \(org/tiny\), found org/huge; merge only adapters of one base",
        ),
        (
            other_hub_id,
            "expected an adapter of org/tiny, found one of org/huge; load that base instead",
        ),
        (
            other_architecture,
            "expected a Linear, Conv1D or Embedding layer 'transformer.h.0.attn.c_attn' in the base, found no such module; "
            "the adapter belongs to another base model",
        ),
        (
            rewritten(
                lambda tensors: {
                    key.replace("self_attn.q_proj", "mlp"): t for key, t in tensors.items()
                }
            ),
            "expected a Linear, Conv1D or Embedding layer 'model.layers.0.mlp' in the base, found a LlamaMLP",
        ),
        (
            rewritten(other_width),
            rf"{SHAPES} \(16, 16\) in {Q}, found \(8, 16\); it belongs to another base model",
        ),
        (
            rewritten(transposed_width),
            rf"{SHAPES} \(16, 16\) in {Q}, found \(16, 8\); it belongs to another base model",
        ),
        # Another vocabulary.
        (
            other_tokenizer,
            "expected the vocabulary of the base, found a tokenizer that differs in 1 tokens; use the base",
        ),
        (
            swapped_tokens,
            "expected the vocabulary of the base, found a tokenizer that differs in 4 tokens; use the base",
        ),
        (
            larger_vocabulary("embed_tokens"),
            rf"{SHAPES} \(257, 16\) in model\.embed_tokens, found \(260, 16\); its vocabulary differs",
        ),
        (
            larger_vocabulary("lm_head"),
            rf"{SHAPES} \(16, 257\) in lm_head, found \(16, 260\); it belongs to another base",
        ),
        (
            retrained_vocabulary,
            "expected the saved copy of model.embed_tokens to equal the base, found other weights; "
            "train the adapter without changing the vocabulary",
        ),
        # Weights.
        (
            spoilt(math.nan),
            "expected finite weights, found NaN or infinity in 'base_model.*q_proj.lora_B.weight'; use an ea",
        ),
        (
            spoilt(math.inf),
            "expected finite weights, found NaN or infinity in 'base_model.*q_proj.lora_B.weight'; use an ea",
        ),
        (
            spoilt(-math.inf),
            "expected finite weights, found NaN or infinity in 'base_model.*q_proj.lora_B.weight'; use an ea",
        ),
        (
            with_files(pickled),
            "expected adapter_model.safetensors, found only adapter_model.bin, a pickle that is not read because it can run "
            "code; save it with safe_serialization=True",
        ),
        (
            with_files(lambda folder: (folder / WEIGHTS).unlink()),
            "expected adapter_model.safetensors, found none; save it with safe_serialization=True",
        ),
        (
            with_files(truncated),
            "expected adapter_model.safetensors in safetensors format, found .+",
        ),
        (with_files(pointer), "expected adapter_model.safetensors in safetensors format, found .+"),
        (
            with_files(lambda folder: (folder / WEIGHTS).write_bytes(b"")),
            "expected adapter_model.safetensors in safetensors format, found .+",
        ),
        (
            with_files(lambda folder: save_file({}, folder / WEIGHTS)),
            "expected LoRA tensors in adapter_model.safetensors, found none",
        ),
        (
            rewritten(
                lambda tensors: {key: t for key, t in tensors.items() if key != KEY.format("B")}
            ),
            f"expected lora_A and lora_B for {Q}, found only lora_A",
        ),
        (
            rewritten(
                lambda tensors: {key: t for key, t in tensors.items() if key != KEY.format("A")}
            ),
            f"expected lora_A and lora_B for {Q}, found only lora_B",
        ),
        (
            rewritten(
                lambda tensors: {**tensors, "base_model.model.lm_head.weight": torch.ones(2, 2)}
            ),
            "expected only lora_A and lora_B tensors, found 'base_model.model.lm_head.weight'; save the adapter as plain LoRA",
        ),
        (
            rewritten(
                lambda tensors: {
                    key.removeprefix("base_model."): tensor for key, tensor in tensors.items()
                }
            ),
            "expected only lora_A and lora_B tensors, found 'model.model.layers",
        ),
        (
            configured(r=8),
            rf"expected rank 8 in {Q}, found lora_A \(4, 16\) and lora_B \(16, 4\); {RANKS}",
        ),
        (
            configured(rank_pattern={"0.self_attn.q_proj": 2}),
            rf"expected rank 2 in {Q}, found lora_A \(4, 16\) and lora_B \(16, 4\); {RANKS}",
        ),
        (
            rewritten(
                lambda tensors: {
                    key: t[:, :3].contiguous() if "_B" in key else t for key, t in tensors.items()
                }
            ),
            rf"expected rank 4 in {Q}, found lora_A \(4, 16\) and lora_B \(16, 3\); {RANKS}",
        ),
        (
            rewritten(lambda tensors: {key: tensor[None] for key, tensor in tensors.items()}),
            rf"expected rank 4 in {Q}, found lora_A \(1, 4, 16\) and lora_B \(1, 16, 4\); {RANKS}",
        ),
        # Configuration.
        (
            with_files(lambda folder: (folder / CONFIG).unlink()),
            "expected adapter_config.json, found none; give the folder that peft's save_pretrained wrote",
        ),
        (
            with_files(lambda folder: (folder / CONFIG).write_text('{"peft_type": \n"LORA"')),
            "expected JSON in adapter_config.json, found Expecting",
        ),
        (
            with_files(lambda folder: (folder / CONFIG).write_bytes(b'{"peft_type": "\xff"}')),
            "expected JSON in adapter_config.json, found .*decode",
        ),
        (
            with_files(lambda folder: (folder / CONFIG).write_text('["LORA"]')),
            "expected an object in adapter_config.json, found list",
        ),
        (configured(r=None), "expected r in adapter_config.json to be a whole number, found None"),
        (configured(r="4"), "expected r in adapter_config.json to be a whole number, found '4'"),
        (
            configured(lora_alpha=True),
            "expected lora_alpha in adapter_config.json to be a number, found True",
        ),
        (
            configured(rank_pattern=["q_proj"]),
            r"expected rank_pattern in adapter_config.json to be a table, found \['q_proj'\]",
        ),
        (
            configured(alpha_pattern={"q_proj": "8"}),
            "expected .*alpha_pattern.* number.*found.*'8'",
        ),
        # The list as a whole.
        (
            with_files(shutil.rmtree),
            "expected a folder with adapter_config.json and adapter_model.safetensors, found no such",
        ),
        (
            same_names,
            r"expected different names, found 'sick' 2 times \(.*experts/sick, .*other/sick\); give them names",
        ),
        (
            same_given_names,
            r"expected different names, found 'sick' 2 times \(.*experts/one, .*experts/two\); give them names",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_merged_exactly_is_refused_in_one_sentence_that_names_the_adapter(
    bench, make, message
):
    folders = make(bench)
    with pytest.raises(ValueError, match=message) as caught:
        load(folders, bench.model, bench.tokenizer, bench.names)
    sentence = str(caught.value)
    assert re.match(r"experts?( 'sick'.*)?: ", sentence)
    assert "'sick'" in sentence
    assert "\n" not in sentence


def test_an_empty_list_of_experts_is_refused():
    with pytest.raises(
        ValueError, match="^experts: expected at least one adapter folder, found none$"
    ):
        check_together([])
