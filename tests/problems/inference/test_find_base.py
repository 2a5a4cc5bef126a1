"""A base is a folder, a hub id with revision and folder, or the folder `base` beside experts."""

import pytest
import torch
from fake_hub import COMMIT, LATER, FakeHub, add_to_cache

from evox_evogm.problems.adapters.hub_source import source_of_folder
from evox_evogm.problems.checkpoints.base_weights import files_of_base
from evox_evogm.problems.inference.base_model import load_base
from evox_evogm.problems.inference.find_base import (
    base_beside,
    find_base,
    has_model,
    source_of_model,
)

REPOSITORY = "org/loras"


@pytest.fixture
def files(tmp_path):
    """A repository with a base beside experts."""
    folder = tmp_path / "files"
    for name in ("base/config.json", "base/model.safetensors", "base/runs/log.json", "README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "experts" / "code").mkdir(parents=True)
    (folder / "experts" / "code" / "adapter_config.json").write_text("{}")
    (folder / "base" / "pytorch_model.bin").write_text("a pickle")
    return folder


def test_a_folder_is_itself_or_its_base(files, tmp_path):
    assert find_base(str(files / "base")).source == str(files / "base")
    assert find_base(files).source == files / "base"
    assert find_base(tmp_path).source == tmp_path  # which holds neither
    assert find_base("nowhere") == ("nowhere", None)


def test_a_hub_id_is_for_transformers(hub_cache):
    assert find_base("org/model") == ("org/model", None)
    assert find_base("org/model@v1") == ("org/model", "v1")


def test_a_hub_id_is_for_transformers_at_its_commit(hub_cache, files):
    add_to_cache(hub_cache, "org/model", files / "base", LATER, "v1")
    assert find_base("org/model@v1") == ("org/model", LATER)


def test_a_folder_of_a_repository_is_downloaded_without_pickles(hub_cache, files, monkeypatch):
    hub = FakeHub(hub_cache)
    hub.add(REPOSITORY, files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    found = find_base(f"{REPOSITORY}/base")
    assert str(source_of_folder(found.source)) == f"{REPOSITORY}@{COMMIT}/base"
    assert hub.downloaded == ["README.md", "base/config.json", "base/model.safetensors"]
    with pytest.raises(ValueError, match=f"^base: expected a model in {REPOSITORY}/experts, found"):
        find_base(f"{REPOSITORY}/experts")


def test_a_repository_of_experts_stands_for_the_base_in_it(hub_cache, files):
    snapshot = add_to_cache(hub_cache, REPOSITORY, files, LATER, "v2")
    assert find_base(f"{REPOSITORY}@v2").source == snapshot / "base"
    assert has_model(f"{REPOSITORY}@v2/base") and not has_model(f"{REPOSITORY}@v2/experts")
    assert not has_model(REPOSITORY)  # it has no main branch here


@pytest.mark.parametrize(
    ("experts", "base"),
    [
        ("org/loras", "org/loras/base"),
        ("org/loras@v1", "org/loras@v1/base"),
        ("org/loras@v1/experts", "org/loras@v1/base"),
        ("hf://models/loras@v1", "hf://models/loras@v1/base"),
        ("org/loras/qwen/experts", "org/loras/qwen/base"),
        ("files", "files/base"),
        ("files/experts", "files/base"),
        ("files/base", None),
        ("nowhere", None),
    ],
)
def test_the_base_lies_beside_the_experts(experts, base, files, tmp_path):
    assert base_beside(experts, tmp_path) == base


def test_a_base_at_a_revision_is_loaded_by_transformers(hub_cache, tmp_path, model, tokenizer):
    model.save_pretrained(tmp_path / "old")
    tokenizer.save_pretrained(tmp_path / "old")
    with torch.no_grad():
        model.model.norm.weight.fill_(3.0)
    model.save_pretrained(tmp_path / "new")
    tokenizer.save_pretrained(tmp_path / "new")
    add_to_cache(hub_cache, "org/model", tmp_path / "old", COMMIT, "v1")
    add_to_cache(hub_cache, "org/model", tmp_path / "new", LATER, "main")
    for name, weight, commit in (
        ("org/model@v1", 1.0, COMMIT),
        ("org/model", 3.0, LATER),
        (f"org/model@{COMMIT}", 1.0, COMMIT),
    ):
        loaded, _ = load_base(name, dtype=torch.float32, device=torch.device("cpu"))
        assert float(loaded.model.norm.weight[0]) == weight
        assert loaded.config._name_or_path == "org/model"
        assert str(source_of_model(loaded)) == f"org/model@{commit}"
        assert files_of_base(loaded).folder.name == commit  # which full checkpoints differ from


def test_the_hub_is_meant_beside_a_folder_of_the_same_name(hub_cache, files, tmp_path, monkeypatch):
    snapshot = add_to_cache(hub_cache, "org/model", files / "base")
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_base("org/model").source == "org/model"  # the folder
    assert find_base("hf://org/model").source == snapshot


def test_a_name_of_the_hub_is_no_missing_folder(hub_cache):
    with pytest.raises(ValueError, match="found 'hf://org/nowhere': (?!no such folder)"):
        load_base("hf://org/nowhere", dtype=torch.float32, device=torch.device("cpu"))
