"""Adapters are read as peft writes them; what is not plain LoRA is refused in one sentence."""

import json
import math
import shutil
import time
from pathlib import Path

import pytest
import torch
from builders import build_model
from safetensors.torch import load_file, save_file
from sick_adapters import (
    check_refusal,
    configured,
    fit_folders,
    load_experts,
    trained,
    with_files,
    with_tensors,
)

from evox_evogm.problems.adapters.read_adapter import CONFIG, WEIGHTS, read_expert

LAYER = "model.layers.{}.self_attn.{}_proj"
KEY_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
KEY_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def scales(expert):
    return {module: factors.scale for module, factors in expert.modules.items()}


def ranks(expert):
    return {module: len(factors.a) for module, factors in expert.modules.items()}


def by_module(values):
    """Values by (layer, projection) as values by module name."""
    return {LAYER.format(*place): value for place, value in values.items()}


def test_an_adapter_is_read_with_its_name_its_base_and_its_tensors(make_adapter, edit_config):
    folder = make_adapter("code", r=3, lora_alpha=6)
    edit_config(folder, base_model_name_or_path="org/tiny")
    expert = read_expert(folder)
    assert expert.name == "code"
    assert expert.folder == folder
    assert expert.base == "org/tiny"
    assert not expert.base_copies
    expected = [LAYER.format(layer, kind) for layer in (0, 1) for kind in "qv"]
    assert sorted(expert.modules) == sorted(expected)
    tensors = load_file(folder / WEIGHTS)
    factors = expert.modules[LAYER.format(0, "q")]
    assert torch.equal(factors.a, tensors[KEY_A])
    assert torch.equal(factors.b, tensors[KEY_B])
    assert tuple(factors.a.shape) == (3, 16)
    assert tuple(factors.b.shape) == (16, 3)
    assert not factors.embedding


def test_an_expert_may_have_another_name_than_its_folder(make_adapter):
    assert read_expert(make_adapter("code"), name="mine").name == "mine"


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
    expert = read_expert(make_adapter("code", **settings))
    assert set(scales(expert).values()) == {scale}


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
    assert scales(expert) == pytest.approx(by_module(expected))
    assert ranks(expert) == by_module({(0, "q"): 9, (1, "q"): 4, (0, "v"): 2, (1, "v"): 2})


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
    reloaded = PeftModel.from_pretrained(build_model(), folder)
    expected = {}
    for name, layer in reloaded.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            expected[name] = layer.scaling["default"]
    assert len(expected) == 4
    assert scales(read_expert(folder)) == pytest.approx(expected)


def test_tensors_stored_in_half_precision_are_read_in_float32(make_adapter, edit_tensors):
    folder = make_adapter("code")
    edit_tensors(folder, lambda tensors: {key: t.bfloat16() for key, t in tensors.items()})
    factors = read_expert(folder).modules[LAYER.format(0, "q")]
    assert factors.a.dtype == factors.b.dtype == torch.float32
    assert torch.equal(factors.a, load_file(folder / WEIGHTS)[KEY_A].float())


@pytest.mark.parametrize("patterns", [{"rank_pattern": None, "alpha_pattern": None}, {}])
def test_settings_that_older_versions_of_peft_left_out_have_their_defaults(
    make_adapter, model, patterns
):
    folder = make_adapter("code")
    needed = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (folder / CONFIG).write_text(json.dumps(needed | patterns))
    (expert,) = load_experts([folder], model)
    assert set(scales(expert).values()) == {2.0}
    assert expert.base == ""


@pytest.mark.parametrize("initialisation", [True, False, "gaussian", "orthogonal", "eva", "true"])
def test_an_initialisation_that_leaves_the_base_as_it_is_is_read(
    make_adapter, edit_config, initialisation
):
    folder = make_adapter("code")
    edit_config(folder, init_lora_weights=initialisation)
    assert len(read_expert(folder).modules) == 4


def test_embedding_and_output_layers_are_read(make_adapter):
    expert = read_expert(make_adapter("words", target_modules=["embed_tokens", "lm_head"], r=2))
    embedding = expert.modules["model.embed_tokens"]
    assert embedding.embedding
    assert tuple(embedding.a.shape) == (2, 257)
    assert tuple(embedding.b.shape) == (16, 2)
    head = expert.modules["lm_head"]
    assert not head.embedding
    assert tuple(head.a.shape) == (2, 16)
    assert tuple(head.b.shape) == (257, 2)


def test_checkpoints_inside_an_adapters_folder_are_left_unread(make_adapter):
    """Trainers save them there. The adapter is the one that stands in the folder itself."""
    folder = make_adapter("code", seed=1)
    shutil.copytree(make_adapter("earlier", seed=2), folder / "checkpoint-5")
    factors = read_expert(folder).modules[LAYER.format(0, "q")]
    assert torch.equal(factors.a, load_file(folder / WEIGHTS)[KEY_A])


def test_a_model_beside_the_adapter_is_left_unread_and_noted(make_adapter, model):
    folder = make_adapter("code")
    model.save_pretrained(folder)
    fit = fit_folders([folder], model)
    assert len(fit.experts[0].modules) == 4
    assert fit.notes[0].endswith("took only the adapter of a folder that also holds a model")


def test_a_hub_id_as_a_path_is_refused_with_what_to_do():
    message = "found no such folder; give a hub id as a str, not as a Path"
    with pytest.raises(ValueError, match=message):
        read_expert(Path("someone/an-adapter-7b"))


def test_thousands_of_patterns_are_tried_in_seconds(make_adapter, edit_config):
    folder = make_adapter("code")
    names = [f"model.layers.{number}.self_attn.k_proj" for number in range(5000)]
    patterns = dict.fromkeys(names, 9) | {r".*\.0\.self_attn\.v_proj": 4}
    edit_config(folder, rank_pattern=patterns, alpha_pattern=patterns | {"q_proj": 2})
    start = time.perf_counter()
    expert = read_expert(folder)
    assert time.perf_counter() - start < 20
    expected = by_module({(0, "q"): 2 / 4, (1, "q"): 2 / 4, (0, "v"): 4 / 4, (1, "v"): 8 / 4})
    assert scales(expert) == expected


# Refusals. Each case makes an adapter "sick" in its own way, and states what is said about it.

PLAIN = "expected plain LoRA, found"
LEAVE = "leave this adapter out or retrain it"
NO_BIASES = "train the adapter without biases"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (trained(use_dora=True), rf"{PLAIN} DoRA \(use_dora is set\); {LEAVE}"),
        (
            trained(lora_bias=True, init_lora_weights=True),
            rf"{PLAIN} lora_bias \(lora_bias is set\); {LEAVE}",
        ),
        (trained(bias="all"), f"expected bias 'none', found 'all'; {NO_BIASES}"),
        (trained(bias="lora_only"), f"expected bias 'none', found 'lora_only'; {NO_BIASES}"),
        (
            trained(modules_to_save=["lm_head"]),
            rf"{PLAIN} modules_to_save \(modules_to_save is set\); {LEAVE}",
        ),
        (trained(trainable_token_indices=[3, 5]), rf"{PLAIN} trainable_token_indices .*; {LEAVE}"),
        (trained(layer_replication=[[0, 2], [1, 2]]), rf"{PLAIN} layer_replication .*; {LEAVE}"),
        (configured(use_qalora=True), rf"{PLAIN} QALoRA .*; {LEAVE}"),
        (configured(alora_invocation_tokens=[1]), rf"{PLAIN} activated LoRA .*; {LEAVE}"),
        (
            configured(peft_type="IA3"),
            "expected peft_type LORA, found 'IA3'; only LoRA adapters can be merged",
        ),
        (configured(peft_type="ADALORA"), "expected peft_type LORA, found 'ADALORA'"),
        (configured(peft_type=None), "expected peft_type LORA, found None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kind_of_adapter_that_is_not_a_product_of_two_factors_is_refused(bench, make, message):
    check_refusal(bench, make(bench), message)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (trained, "pissa"),
        (configured, "pissa_niter_4"),
        (trained, "olora"),
        (configured, "corda"),
        (configured, "loftq"),
        (configured, "lora_ga"),
    ],
)
def test_an_initialisation_that_takes_its_part_out_of_the_base_is_refused(bench, make, kind):
    folders = make(init_lora_weights=kind)(bench)
    message = (
        f"expected an adapter of the unchanged base, found init_lora_weights {kind!r}, which "
        "changes it; convert it with peft's path_initial_model_for_weight_conversion"
    )
    check_refusal(bench, folders, message)


def with_b(value):
    """An adapter with this value in the middle of a factor."""

    def change(tensors):
        tensors[KEY_B][1, 2] = value
        return tensors

    return with_tensors(change)


def without(left_out):
    """An adapter that lacks a tensor."""
    return with_tensors(lambda tensors: {key: t for key, t in tensors.items() if key != left_out})


def with_pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def truncated(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def git_lfs_pointer(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (folder / WEIGHTS).write_text(pointer)


def with_whole_head(tensors):
    return {**tensors, "base_model.model.lm_head.weight": torch.ones(2, 2)}


def with_short_names(tensors):
    return {key.removeprefix("base_model."): tensor for key, tensor in tensors.items()}


def of_whole_numbers(tensors):
    return {key: tensor.char() for key, tensor in tensors.items()}


def fewer_ranks_in_b(tensors):
    return {key: t[:, :3].contiguous() if "_B" in key else t for key, t in tensors.items()}


def three_dimensional(tensors):
    return {key: tensor[None] for key, tensor in tensors.items()}


Q = r"model\.layers\.0\.self_attn\.q_proj"
FORMAT = f"expected {WEIGHTS} in safetensors format, found .+"
NAMES = "expected only lora_A and lora_B tensors, found"
FINITE = (
    "expected finite weights, found NaN or infinity in 'base_model.*q_proj.lora_B.weight'; "
    "use an earlier checkpoint"
)
RANKS = f"{CONFIG} and {WEIGHTS} do not belong together"
SICK_WEIGHTS = {
    "NaN": (with_b(math.nan), FINITE),
    "infinity": (with_b(math.inf), FINITE),
    "minus infinity": (with_b(-math.inf), FINITE),
    "a pickle": (
        with_files(with_pickle),
        f"expected {WEIGHTS}, found only adapter_model.bin, a pickle that is not read because it "
        "can run code; save it with safe_serialization=True",
    ),
    "no weights": (
        with_files(lambda folder: (folder / WEIGHTS).unlink()),
        f"expected {WEIGHTS}, found none; save it with safe_serialization=True",
    ),
    "truncated weights": (with_files(truncated), FORMAT),
    "a pointer": (with_files(git_lfs_pointer), FORMAT),
    "an empty file": (with_files(lambda folder: (folder / WEIGHTS).write_bytes(b"")), FORMAT),
    "no tensors": (
        with_files(lambda folder: save_file({}, folder / WEIGHTS)),
        f"expected LoRA tensors in {WEIGHTS}, found none",
    ),
    "whole numbers": (
        with_tensors(of_whole_numbers),
        "expected weights in float32, bfloat16, float16 or the like, found int8",
    ),
    "only A": (without(KEY_B), f"expected lora_A and lora_B for {Q}, found only lora_A"),
    "only B": (without(KEY_A), f"expected lora_A and lora_B for {Q}, found only lora_B"),
    "a whole module": (
        with_tensors(with_whole_head),
        "expected the saved copy of lm_head to equal the base, found other weights; "
        "train the adapter without changing the vocabulary",
    ),
    "other names": (with_tensors(with_short_names), f"{NAMES} 'model.model.layers"),
    "another rank": (
        configured(r=8),
        rf"expected rank 8 in {Q}, found lora_A \(4, 16\) and lora_B \(16, 4\); {RANKS}",
    ),
    "another rank by pattern": (
        configured(rank_pattern={"0.self_attn.q_proj": 2}),
        rf"expected rank 2 in {Q}, found lora_A \(4, 16\) and lora_B \(16, 4\); {RANKS}",
    ),
    "another rank in B": (
        with_tensors(fewer_ranks_in_b),
        rf"expected rank 4 in {Q}, found lora_A \(4, 16\) and lora_B \(16, 3\); {RANKS}",
    ),
    "three dimensions": (
        with_tensors(three_dimensional),
        rf"expected rank 4 in {Q}, found lora_A \(1, 4, 16\) and lora_B \(1, 16, 4\); {RANKS}",
    ),
}


@pytest.mark.parametrize("case", SICK_WEIGHTS)
def test_weights_that_are_no_pairs_of_finite_factors_are_refused(bench, case):
    make, message = SICK_WEIGHTS[case]
    check_refusal(bench, make(bench), message)


def with_config(content):
    """An adapter with this text or these bytes as its configuration."""
    data = content if isinstance(content, bytes) else content.encode()
    return with_files(lambda folder: (folder / CONFIG).write_bytes(data))


def into_folders(folder):
    for name in ("second", "first"):
        shutil.copytree(folder, folder.parent / "copy")
        (folder.parent / "copy").rename(folder / name)
    (folder / CONFIG).unlink()


SICK_CONFIGS = {
    "no configuration": (
        with_files(lambda folder: (folder / CONFIG).unlink()),
        f"expected {CONFIG}, found none; give the folder that peft's save_pretrained wrote",
    ),
    "no JSON": (
        with_config('{"peft_type": \n"LORA"'),
        f"expected JSON in {CONFIG}, found Expecting",
    ),
    "no UTF-8": (
        with_config(b'{"peft_type": "\xff"}'),
        f"expected JSON in {CONFIG}, found .*decode",
    ),
    "adapters in folders": (
        with_files(into_folders),
        f"expected {CONFIG}, found adapters in its folders first, second; give one of these",
    ),
    "MLX": (
        with_config('{"fine_tune_type": "lora", "lora_parameters": {"rank": 4}}'),
        "expected an adapter of peft, found one of MLX; convert it to the format of peft",
    ),
    "names of parameters in words": (
        configured(target_parameters="experts.down_proj"),
        f"expected target_parameters in {CONFIG} to be a list of names, found 'experts.down_proj'",
    ),
    "too many patterns": (
        configured(rank_pattern={f"layer{number}": 4 for number in range(20_001)}),
        "expected at most 20000 patterns in rank_pattern, found 20001",
    ),
    "a list": (with_config('["LORA"]'), f"expected an object in {CONFIG}, found list"),
    "no rank": (
        configured(r=None),
        f"expected r in {CONFIG} to be a whole number, found None",
    ),
    "a rank in words": (
        configured(r="4"),
        f"expected r in {CONFIG} to be a whole number, found '4'",
    ),
    "a rank of 0": (
        configured(rank_pattern={"q_proj": 0}),
        f"expected rank_pattern 'q_proj' in {CONFIG} to be a whole number of at least 1, found 0",
    ),
    "an alpha of true": (
        configured(lora_alpha=True),
        f"expected lora_alpha in {CONFIG} to be a number, found True",
    ),
    "an infinite alpha": (
        configured(lora_alpha=math.inf),
        f"expected lora_alpha in {CONFIG} to be a finite number, found inf",
    ),
    "a list of patterns": (
        configured(rank_pattern=["q_proj"]),
        rf"expected rank_pattern in {CONFIG} to be a table, found \['q_proj'\]",
    ),
    "a pattern's alpha in words": (
        configured(alpha_pattern={"q_proj": "8"}),
        "expected .*alpha_pattern.* number.*found.*'8'",
    ),
    "no regular expression": (
        configured(rank_pattern={"[q_proj": 4}),
        r"expected a regular expression in rank_pattern, found '\[q_proj'",
    ),
    "a slow regular expression": (
        configured(alpha_pattern={"(a+)+b": 4}),
        "expected names or short regular expressions in alpha_pattern, with at most one group and "
        "two repetitions",
    ),
    "rslora of 1": (
        configured(use_rslora=1),
        f"expected use_rslora in {CONFIG} to be true or false, found 1",
    ),
    "no folder": (
        with_files(shutil.rmtree),
        f"expected a folder with {CONFIG} and {WEIGHTS}, found no such",
    ),
}


@pytest.mark.parametrize("case", SICK_CONFIGS)
def test_a_configuration_that_is_none_is_refused(bench, case):
    make, message = SICK_CONFIGS[case]
    check_refusal(bench, make(bench), message)
