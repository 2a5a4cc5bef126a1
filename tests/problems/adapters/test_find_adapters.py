"""Experts by hub id: only an adapter's files, at one commit, and a folder here wins."""

import shutil

import pytest
import torch
from fake_hub import COMMIT, LATER, FakeHub, add_to_cache
from safetensors.torch import load_file

from evox_evogm.problems import Example, LoRAMergeProblem, Task, find_adapters
from evox_evogm.problems.adapters.find_adapters import (
    find_adapter,
    holds_adapter,
    name_of_source,
)
from evox_evogm.problems.adapters.hub_source import source_of_folder
from evox_evogm.problems.adapters.read_adapter import CONFIG, WEIGHTS, read_expert

PUBLISHED = "TaoJiangCN/qwen2.5-1.5b-tulu-v2-lora-experts"  # as the paper's experts are published


@pytest.fixture
def repository(tmp_path, make_adapter):
    """A folder with base and two experts, as the paper's repository has them, and more files."""
    folder = tmp_path / "repository"
    for seed, name in enumerate(("code", "science")):
        shutil.move(make_adapter(name, seed=seed), folder / "experts" / name)
        (folder / "experts" / name / "optimizer.pt").write_text("large")
    (folder / "base").mkdir()
    (folder / "base" / "model.safetensors").write_text("large")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture
def hub(hub_cache, repository, monkeypatch):
    """A hub that can be reached and has the repository."""
    hub = FakeHub(hub_cache)
    hub.add(PUBLISHED, repository)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return hub


def test_only_the_files_of_the_adapter_are_downloaded(hub, repository):
    expert = read_expert(f"{PUBLISHED}/experts/code")
    assert expert.name == "code"
    assert str(source_of_folder(expert.folder)) == f"{PUBLISHED}@{COMMIT}/experts/code"
    expected = {"README.md", f"experts/code/{CONFIG}", f"experts/code/{WEIGHTS}"}
    assert set(hub.downloaded) == expected | {"experts/code/README.md"}  # that of peft
    tensors = load_file(repository / "experts" / "code" / WEIGHTS)
    for name, factors in expert.modules.items():
        key = f"base_model.model.{name}.lora_A.weight"
        assert torch.equal(factors.a, tensors[key])


def test_a_repository_gives_every_adapter_in_its_folder_of_experts(hub):
    found = find_adapters(PUBLISHED)
    assert list(found) == ["code", "science"]
    assert all((folder / WEIGHTS).is_file() for folder in found.values())
    assert not any(name.startswith("base/") for name in hub.downloaded)
    assert list(find_adapters(f"{PUBLISHED}/experts")) == ["code", "science"]
    assert not holds_adapter(PUBLISHED, "here")
    assert holds_adapter(f"{PUBLISHED}/experts/code", "here")


def test_what_was_downloaded_is_found_without_a_network(hub, monkeypatch):
    online = find_adapters(PUBLISHED)
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_adapters(PUBLISHED) == online
    assert find_adapter(f"{PUBLISHED}@{COMMIT}/experts/code", "here") == online["code"]


def test_weights_that_are_missing_without_a_network_are_named(hub_cache, repository):
    files = {f"experts/code/{CONFIG}"}
    add_to_cache(hub_cache, PUBLISHED, repository, files=files)
    message = (
        rf"^here: expected {WEIGHTS} in {PUBLISHED}@{COMMIT}/experts/code, found none; "
        rf"HF_HUB_OFFLINE is set; where there is a network: hf download {PUBLISHED}$"
    )
    with pytest.raises(ValueError, match=message):
        find_adapter(f"{PUBLISHED}/experts/code", "here")


def test_a_revision_is_another_adapter_and_a_known_commit_goes_first(hub, repository, tmp_path):
    later = tmp_path / "later"
    shutil.copytree(repository, later)
    hub.add(PUBLISHED, later, LATER, "v2")
    name = f"{PUBLISHED}@v2/experts/code"
    assert source_of_folder(find_adapter(name, "here")).revision == LATER
    commits = {f"{PUBLISHED}@v2": COMMIT}
    assert source_of_folder(find_adapter(name, "here", commits=commits)).revision == COMMIT
    assert name_of_source(name) == "code" and name_of_source(f"{PUBLISHED}@v2").startswith("qwen")


def test_a_folder_here_wins(hub, make_adapter, tmp_path):
    local = tmp_path / PUBLISHED / "experts" / "code"
    shutil.copytree(make_adapter("other", seed=7), local)
    assert find_adapter(f"{PUBLISHED}/experts/code", "here", tmp_path) == local
    assert not hub.downloaded


def test_a_folder_without_an_adapter_is_refused_with_those_that_are_there(hub):
    message = "found adapters in its folders experts/code, experts/science; give one of these$"
    for name in (f"{PUBLISHED}/experts/cod", PUBLISHED):
        with pytest.raises(ValueError, match=rf"^here: expected {CONFIG} in {name}, {message}"):
            find_adapter(name, "here")


def test_a_repository_without_adapters_is_refused(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("")
    hub.add("org/model", tmp_path / "empty")
    with pytest.raises(ValueError, match="found none; is it an adapter of peft?"):
        find_adapter("org/model", "here")
    with pytest.raises(ValueError, match=f"^experts: expected adapter folders with {CONFIG} in"):
        find_adapters("org/model")


def test_a_revision_in_the_wrong_place_is_refused_with_the_right_one():
    message = "^here: expected a folder, or a hub id as owner/name@revision/folder, found 'a/b/c@v'"
    with pytest.raises(ValueError, match=message):
        find_adapter("a/b/c@v", "here")


def test_a_problem_takes_hub_ids(hub, repository, model, tokenizer):
    task = Task("sums", "1", "gold_log_probability", (Example("0", "1 + 1 =", "2"),))
    names = [f"{PUBLISHED}/experts/code", f"{PUBLISHED}@main/experts/science"]
    scores = []
    for experts in (names, find_adapters(PUBLISHED), sorted((repository / "experts").iterdir())):
        problem = LoRAMergeProblem(model, experts, [task], tokenizer=tokenizer, mode="unmerged")
        assert [expert.name for expert in problem.experts] == ["code", "science"]
        scores.append(problem.score_tasks(torch.tensor([0.5, -0.25]))["sums"])
    torch.testing.assert_close(scores[0], scores[2])
    torch.testing.assert_close(scores[1], scores[2])
