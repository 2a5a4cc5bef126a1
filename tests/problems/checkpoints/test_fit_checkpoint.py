"""What is refused of whole models, each in a sentence."""

import json

import pytest
import torch
from builders import build_model
from builders_checkpoints import changed
from safetensors.torch import load_file, save_file

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.checkpoints.find_checkpoints import compare_files

TASK = Task("sums", "1", "gold_log_probability", (Example("0", "1+1=", "2"),))


@pytest.fixture
def base(write_model, tokenizer):
    folder = write_model("base")
    tokenizer.save_pretrained(folder)
    return folder


def load(base, experts, **settings):
    return LoRAMergeProblem(str(base), experts, [TASK], dtype=torch.float32, **settings)


def edit(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"vocab_size": 300}, "expected the vocabulary of the base, vocab_size 257, found 300"),
        ({"num_hidden_layers": 3}, "the size of the base, num_hidden_layers 2, found 3"),
        ({"hidden_size": 32}, "the size of the base, hidden_size 16, found 32"),
        ({"num_attention_heads": 2}, "the size of the base, num_attention_heads 4, found 2"),
        (
            {"architecture": "qwen2"},
            "a model of the base's architecture 'llama', found 'qwen2'; only weights of one",
        ),
    ],
)
def test_another_architecture_or_size_is_refused_with_both_numbers(
    base, write_model, settings, sentence
):
    expert = write_model("expert", 1, **settings)
    with pytest.raises(ValueError, match=sentence):
        load(base, [expert])


def drop(tensors):
    del tensors["model.norm.weight"]


def add(tensors):
    tensors["model.layers.0.mlp.extra.weight"] = torch.ones(2, 2)


def cut(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:8].clone()


def spoil(tensors):
    tensors["model.norm.weight"][3] = torch.nan


def to_whole_numbers(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop, "expected the tensors of the base, found 1 missing, as model.norm.weight; it be"),
        (add, "found 1 that the base does not have, as model.layers.0.mlp.extra.weight; it be"),
        (cut, r"expected the shape \(16,\) in model.norm.weight, found \(8,\); it belongs to"),
        (spoil, "expected finite weights, found NaN or infinity in model.norm.weight; use an"),
        (to_whole_numbers, "expected weights in float32, bfloat16 or float16, found I8 in model.n"),
    ],
)
def test_other_tensors_are_refused(base, write_model, change, sentence):
    expert = write_model("expert", 1)
    edit(expert, change)
    with pytest.raises(ValueError, match=rf"expert 'expert' \(.*\): .*{sentence}"):
        load(base, [expert])


def test_the_base_itself_is_no_expert(base, write_model):
    with pytest.raises(ValueError, match="found the base's weights in all 21 tensors; leave it"):
        load(base, [write_model("same")])


def test_a_base_rounded_to_bfloat16_is_the_base(base, write_model):
    """So tensors that a trainer left as they were cost nothing where it saved in half precision."""
    with pytest.raises(ValueError, match="found the base's weights in all 21 tensors; leave it"):
        load(base, [write_model("same", dtype=torch.bfloat16)])


def test_memory_that_is_not_there_is_refused_with_both_numbers(
    base, write_model, tokenizer, monkeypatch
):
    class Little:
        available = 40_000

    monkeypatch.setattr("psutil.virtual_memory", Little)
    expert = write_model("expert", 1)
    (note,) = load(base, [expert]).notes  # mapped, without a copy
    assert note == (
        "experts: full checkpoints and the weights that they change take 100.9 KiB, and 39.1 KiB "
        "of memory is free: every merge reads from the disk"
    )
    expected = r"a copy of the base's weights takes 50.4 KiB, expected .* memory, found 39.1 KiB"
    with pytest.raises(ValueError, match=expected):
        LoRAMergeProblem(build_model(), [expert], [TASK], tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "unmerged"}, 'mode: expected "auto" or "merged" .* checkpoint \'expert\''),
        ({"objectives": "gradients"}, "objectives: expected .* adapters for gradients, found the"),
        ({"regmean": "weights"}, "regmean: expected experts that are adapters, whose factors"),
    ],
)
def test_what_needs_factors_is_refused(base, write_model, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(base, [write_model("expert", 1)], **settings)


def test_no_adapter_is_made_of_a_whole_model(base, write_model, tmp_path):
    problem = load(base, [write_model("expert", 1)])
    with pytest.raises(ValueError, match="no product of small factors; export a whole model"):
        problem.export(torch.tensor([1.0]), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_tied_and_untied_output_layers(write_model, tokenizer):
    tied = write_model("tied", tie_word_embeddings=True)
    tokenizer.save_pretrained(tied)
    expert = write_model("expert", 1, tie_word_embeddings=True)

    def untie(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    edit(expert, untie)
    with pytest.raises(ValueError, match="found different weights in model.embed_tokens.weight a"):
        load(tied, [expert])
    free = write_model("free")
    tokenizer.save_pretrained(free)
    other = write_model("other", 1, tie_word_embeddings=True)
    (found,) = load(free, [other]).experts
    embedding = load_file(other / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(found.checkpoint.tensors["lm_head.weight"], embedding)


@pytest.fixture
def write_mixture(tmp_path, tokenizer):
    """A function that saves a mixture of experts, whose tensors transformers fuses."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "eos_token_id": 0}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    sizes |= {"shared_expert_intermediate_size": 8, "initializer_range": 0.3, "pad_token_id": 0}

    def write(name, seed=None, *, tied=False):
        torch.manual_seed(7)
        model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, tie_word_embeddings=tied))
        if seed is not None:
            changed(model, seed)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return write


def test_tied_and_untied_output_layers_of_mixtures(write_mixture):
    free, tied = write_mixture("free"), write_mixture("tied", tied=True)
    own_free, own_tied = write_mixture("own free", 1), write_mixture("own tied", 2, tied=True)
    (found,) = load(free, [own_tied]).experts
    embedding = load_file(own_tied / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(found.checkpoint.tensors["lm_head.weight"], embedding)
    (found,) = load(tied, [own_tied]).experts
    assert "lm_head.weight" not in found.checkpoint.tensors
    with pytest.raises(ValueError, match="found different weights in model.embed_tokens.weight a"):
        load(tied, [own_free])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop, "expected the tensors of the base, found 1 missing, as model.norm.weight; it be"),
        (add, "found 1 that the base does not have, as model.layers.0.mlp.extra.weight; it be"),
        (cut, r"expected the shape \(16,\) in model.norm.weight, found \(8,\); it belongs to"),
    ],
)
def test_other_tensors_of_mixtures_are_refused(write_mixture, change, sentence):
    expert = write_mixture("expert", 1)
    edit(expert, change)
    with pytest.raises(ValueError, match=rf"expert 'expert' \(.*\): .*{sentence}"):
        load(write_mixture("base"), [expert])


def test_masks_that_older_versions_saved_are_no_weights(tmp_path, tokenizer):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "eos_token_id": 0}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4, "bos_token_id": 0}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
    for name in ("base", "expert"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        changed(model, 1, only="mlp")

    def add_masks(tensors):
        prefix = "gpt_neox.layers.0.attention"
        tensors[f"{prefix}.bias"] = torch.ones(1, 1, 8, 8).tril().bool()
        tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{prefix}.rotary_emb.inv_freq"] = torch.ones(1)

    edit(tmp_path / "expert", add_masks)
    (found,) = load(tmp_path / "base", [tmp_path / "expert"]).experts
    names = {name for name, _ in model.named_parameters() if "mlp" in name}
    assert set(found.checkpoint.tensors) == names and len(names) == 4


def test_another_rope_is_told(base, write_model):
    expert = write_model("expert", 1)
    rope = {"rope_type": "default", "rope_theta": 5e5}
    edit_config(expert, rope_parameters=rope)
    (note,) = load(base, [expert]).notes
    assert "was trained with rope_parameters" in note and "merges compute as the base does" in note


def test_pickles_and_missing_shards_are_refused(base, write_model):
    expert = write_model("expert", 1, max_shard_size="20KB")
    next(expert.glob("*00002*.safetensors")).unlink()
    with pytest.raises(ValueError, match="expected all . files that .* names, found 1 missing"):
        load(base, [expert])
    pickled = write_model("pickled", 1)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="found only pytorch_model.bin, a pickle that is not read"):
        load(base, [pickled])


def test_files_are_compared_without_loading_a_model(base, write_model):
    compared = compare_files(write_model("first", 1, only="mlp"), base)
    assert compared.words() == "6 of 21 tensors differ from the base, 12.0 KiB of differences"
