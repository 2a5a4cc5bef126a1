"""Tiny random language models and adapters, in the formats that users have."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import yaml
from builders import build_model, build_tokenizer
from safetensors.torch import save_file

WITH_A_LANGUAGE_MODEL = {"model", "gpt2", "make_adapter", "project"}


def pytest_collection_modifyitems(items):
    """Mark the tests whose fixtures build a language model, and those of the benchmarks."""
    for item in items:
        if WITH_A_LANGUAGE_MODEL & set(item.fixturenames):
            item.add_marker(pytest.mark.language_model)
        if "benchmarks" in item.path.parts:
            item.add_marker(pytest.mark.lengthy)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def model():
    return build_model()


@pytest.fixture
def gpt2():
    return build_model("gpt2")


@pytest.fixture
def make_adapter(tmp_path):
    """A function that writes a random adapter as peft saves it, and returns its folder."""

    def make(name, model=None, *, seed=0, **settings):
        from peft import LoraConfig, get_peft_model

        model = build_model() if model is None else model
        torch.manual_seed(seed)
        config = {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
            **settings,
        }
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
    sets = {"dev": [], "test": []}
    for split, rows in sets.items():
        for i in range(6):
            choices = {"A": "yes", "B": "no"}
            rows.append({"question": f"{split} {i}", "answer": "AB"[i % 2], "choices": choices})
    (tmp_path / "quiz.json").write_text(json.dumps(sets))
    settings = {
        "base": "base",
        "experts": "experts",
        "budget": 17,
        "pop_size": 4,
        "seed": 3,
        "device": "cpu",
        "dtype": "float32",
        "mode": "unmerged",  # what is chosen from measured rates may differ between two runs
        "algorithm": "EvoGM",
        "search": {"n_iters": 1, "epochs": 4, "hidden_dims": [8]},
        "tasks": [
            {
                "json_lines": "dev.jsonl",
                "test_file": "test.jsonl",
                "metric": "gold_log_probability",
                "name": "sums",
            },
            {"swarm_eval": "quiz.json", "metric": "choice_likelihood", "dev": 4, "test": 6},
        ],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty folder that is the cache of the hub, which cannot be reached."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def data():
    """Fifteen points in three dimensions, and three outcomes of theirs."""
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.rand(15, 3, generator=generator, dtype=torch.float64) - 1
    outcomes = torch.stack(
        [points.square().sum(1), points[:, 0] - 0.3, torch.sin(3 * points[:, 1])], 1
    )
    return points, outcomes
