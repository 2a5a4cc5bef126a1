"""Tiny random language models and adapters in the formats that users have, made in a moment; outcomes of a few points."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import yaml
from safetensors.torch import save_file


def build_tokenizer():
    """One token per byte, and an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<end>", *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


def build_model(architecture: str = "llama", **changes):
    """A random causal LM with 2 layers of width 16 and a vocabulary of 257, in float32."""
    import transformers as hf

    torch.manual_seed(7)
    shared = {"vocab_size": 257, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.3}
    if architecture == "gpt2":
        shared.pop("initializer_range")
        shared |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256, **changes}
        return hf.GPT2LMHeadModel(hf.GPT2Config(**shared)).eval()
    shared |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shared |= {"num_attention_heads": 4, "num_key_value_heads": 2, **changes}
    if architecture == "gemma":
        return hf.GemmaForCausalLM(hf.GemmaConfig(head_dim=4, **shared)).eval()
    names = {"llama": "Llama", "qwen2": "Qwen2"}
    config = getattr(hf, f"{names[architecture]}Config")(**shared)
    return getattr(hf, f"{names[architecture]}ForCausalLM")(config).eval()


@pytest.fixture
def model():
    return build_model()


@pytest.fixture
def gpt2():
    return build_model("gpt2")


@pytest.fixture
def make_adapter(tmp_path):
    """A function that writes an adapter of random weights as peft saves it, and returns its folder."""

    def make(name, model=None, *, seed=0, **settings):
        from peft import LoraConfig, get_peft_model

        model = build_model() if model is None else model
        torch.manual_seed(seed)
        config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
        wrapped = get_peft_model(model, LoraConfig(**config))
        for parameter_name, parameter in wrapped.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path / "experts" / name
        wrapped.save_pretrained(folder)
        wrapped.unload()
        return folder

    return make


@pytest.fixture
def edit_config():
    """A function that changes settings in an adapter's configuration file."""

    def edit(folder, **changes):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


@pytest.fixture
def edit_tensors():
    """A function that replaces an adapter's tensors by what another function makes of them."""

    def edit(folder, change):
        from safetensors.torch import load_file

        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return edit


@pytest.fixture
def project(tmp_path, model, tokenizer, make_adapter):
    """A folder with a base, two experts, two tasks and a settings file."""
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    make_adapter("first", seed=1)
    make_adapter("second", seed=2, r=2, lora_alpha=5, target_modules=["up_proj", "o_proj"])
    for split, start in (("dev", 0), ("test", 10)):
        rows = [{"question": f"{i} + {i}", "answer": str(2 * i)} for i in range(start, start + 4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    choices = {"A": "yes", "B": "no"}
    sets = {
        split: [{"question": f"{split} {i}", "answer": "AB"[i % 2], "choices": choices} for i in range(6)]
        for split in ("dev", "test")
    }
    (tmp_path / "quiz.json").write_text(json.dumps(sets))
    settings = {
        "base": "base",
        "experts": "experts",
        "budget": 17,
        "pop_size": 4,
        "seed": 3,
        "device": "cpu",
        "dtype": "float32",
        "path": "factored",  # what is chosen from measured rates may differ between two runs
        "search": {"proposal": "paper", "n_iters": 1, "epochs": 4, "hidden_dims": [8]},
        "tasks": [
            {"json_lines": "dev.jsonl", "test_file": "test.jsonl", "rule": "gold_log_probability", "name": "sums"},
            {"swarm_eval": "quiz.json", "rule": "choice_likelihood", "dev": 4, "test": 6},
        ],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def change_settings(project, **changes):
    path = project / "run.yaml"
    settings = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(yaml.safe_dump({name: value for name, value in settings.items() if value is not ...}))


def merge(project, *options, out="out"):
    from evox_evogm import cli

    return cli.main(["merge", str(project / "run.yaml"), "--out", str(project / out), *options])


def history(out):
    """The evaluations of a run without what depends on the clock."""
    from evox_evogm.journal import read_blocks

    rows = [record for block, _ in read_blocks(out / "history.jsonl") for record in block]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture
def data():
    """Fifteen points in three dimensions, and three outcomes of theirs."""
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.rand(15, 3, generator=generator, dtype=torch.float64) - 1
    outcomes = torch.stack([points.square().sum(1), points[:, 0] - 0.3, torch.sin(3 * points[:, 1])], 1)
    return points, outcomes
