"""Whole models by hub id: only the files that are read, at one commit, also without a network."""

import pytest
import torch
from builders import build_model
from builders_checkpoints import changed
from fake_hub import COMMIT, LATER, FakeHub
from safetensors.torch import load_file

from evox_evogm.problems import Example, LoRAMergeProblem, Task, find_adapters
from evox_evogm.problems.adapters.find_adapters import find_adapter, holds_adapter
from evox_evogm.problems.adapters.hub_source import source_of_folder
from evox_evogm.problems.checkpoints.read_experts import read_any_expert

pytestmark = pytest.mark.language_model
ALONE = "org/whole"
SEVERAL = "org/several"
NOT_READ = (
    "pytorch_model.bin",
    "optimizer.pt",
    "onnx/model.onnx",
    "checkpoint-1/model.safetensors",
)


@pytest.fixture
def hub(hub_cache, tmp_path, monkeypatch, tokenizer, make_adapter):
    """A hub with a whole model in shards at two revisions, and a repository of experts."""
    hub = FakeHub(hub_cache)
    for seed, commit, revision in ((1, COMMIT, "main"), (2, LATER, "v2")):
        folder = tmp_path / f"whole_{seed}"
        changed(build_model(), seed).save_pretrained(folder, max_shard_size="20KB")
        tokenizer.save_pretrained(folder)
        for name in NOT_READ:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("large")
        hub.add(ALONE, folder, commit, revision)
    several = tmp_path / "several"
    build_model().save_pretrained(several / "base")
    changed(build_model(), 3).save_pretrained(several / "experts" / "one")
    make_adapter("two").rename(several / "experts" / "two")
    hub.add(SEVERAL, several)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return hub


def test_only_files_that_are_read_are_downloaded_and_the_weights_are_those(hub, tmp_path):
    expert = read_any_expert(ALONE)
    assert (expert.name, str(source_of_folder(expert.folder))) == ("whole", f"{ALONE}@{COMMIT}")
    assert not set(NOT_READ) & set(hub.downloaded)
    shards = sorted(path.name for path in (tmp_path / "whole_1").glob("model-*.safetensors"))
    assert len(shards) > 1 and set(shards) < set(hub.downloaded)
    for shard in shards:
        for name, tensor in load_file(tmp_path / "whole_1" / shard).items():
            assert torch.equal(expert.checkpoint.files.tensor(name), tensor)
    assert holds_adapter(ALONE, "here") and not holds_adapter(SEVERAL, "here")


@pytest.mark.slow
def test_a_revision_is_another_model_and_a_known_commit_goes_first(hub):
    assert source_of_folder(find_adapter(f"{ALONE}@v2", "here")).revision == LATER
    pinned = find_adapter(f"{ALONE}@v2", "here", commits={f"{ALONE}@v2": COMMIT})
    assert source_of_folder(pinned).revision == COMMIT


def test_a_repository_gives_its_models_and_adapters_but_not_its_base(hub):
    found = find_adapters(SEVERAL)
    assert list(found) == ["one", "two"]
    assert (found["one"] / "model.safetensors").is_file()
    assert "base/model.safetensors" not in hub.downloaded


def test_what_was_downloaded_scores_without_a_network(hub, monkeypatch, tmp_path, tokenizer):
    online = read_any_expert(ALONE)
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_adapter(ALONE, "here") == online.folder
    task = Task("sums", "1", "gold_log_probability", (Example("0", "1 + 1 =", "2"),))
    scores = []
    for source in (ALONE, tmp_path / "whole_1"):
        problem = LoRAMergeProblem(build_model(), [source], [task], tokenizer=tokenizer)
        scores.append(problem.score_tasks(torch.tensor([0.5]))["sums"])
    assert torch.equal(scores[0], scores[1])


@pytest.mark.slow
def test_shards_that_are_missing_without_a_network_are_refused(hub, monkeypatch):
    folder = find_adapter(ALONE, "here")
    next(folder.glob("model-*.safetensors")).unlink()
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = rf"in {ALONE}@{COMMIT}, found none or not all of it; HF_HUB_OFFLINE is set"
    with pytest.raises(ValueError, match=message):
        find_adapter(ALONE, "here")
