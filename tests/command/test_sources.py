"""A base of the hub is kept at the commit that was loaded, in a run and in what it exports."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from fake_hub import COMMIT, LATER, add_to_cache

from evox_evogm.command.exports import export_mergekit_recipe
from evox_evogm.command.licences import licences_of
from evox_evogm.command.licences.reading import _from_hub
from evox_evogm.command.named_adapters import base_of_words, named_adapters
from evox_evogm.command.sources import (
    base_of_settings,
    commits_of,
    note_of_sources,
    sources_of,
)
from evox_evogm.problems import Example, LoRAMergeProblem, Task

TASK = Task("sums", "1", "gold_log_probability", (Example("0", "1+1=", "2"),))


@pytest.fixture
def add_base(hub_cache, tmp_path, model, tokenizer):
    """A function that puts a base at the top of the repository org/model; its norm weights."""

    def add(commit, norm, licence, revision="main"):
        with torch.no_grad():
            model.model.norm.weight.fill_(norm)
        folder = tmp_path / "files" / commit
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        return add_to_cache(hub_cache, "org/model", folder, commit, revision)

    _from_hub.cache_clear()
    yield add
    _from_hub.cache_clear()


def norm_of(model):
    """The first norm weight of the base inside an adapted model."""
    return float(model.get_base_model().model.norm.weight[0])


def test_the_commit_of_a_base_is_recorded_loaded_again_and_exported(
    add_base, tmp_path, make_adapter
):
    from peft import AutoPeftModelForCausalLM

    add_base(COMMIT, 2.0, "mit")
    expert = make_adapter("one")
    problem = LoRAMergeProblem("org/model", [expert], [TASK], dtype=torch.float32)
    settings = SimpleNamespace(base="org/model", experts=str(expert), tasks=[])
    commits = commits_of(settings, tmp_path, {"one": expert}, problem, [])
    assert commits == {"org/model": COMMIT}
    assert sources_of(problem) == {"base": f"org/model@{COMMIT}"}
    assert note_of_sources(problem) == [f"from the hub: base org/model@{COMMIT[:12]}"]
    add_base(LATER, 3.0, "llama3.1")  # the main branch moves on
    pinned = base_of_settings(settings, tmp_path, commits)
    again = LoRAMergeProblem(pinned, [expert], [TASK], dtype=torch.float32)
    assert float(again.language_model.model.model.norm.weight[0]) == 2.0
    assert commits_of(settings, tmp_path, {"one": expert}, again, []) == commits
    assert licences_of(again).parts[0].licence == "mit"
    again.export(torch.ones(1), tmp_path / "merge")
    assert norm_of(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "merge")) == 2.0
    again.export(torch.ones(1), tmp_path / "other", base="org/other")
    assert "revision" not in json.loads((tmp_path / "other/adapter_config.json").read_text())
    export_mergekit_recipe(again, torch.ones(1), tmp_path / "recipe", mergekit="no-such-command")
    recipe = yaml.safe_load((tmp_path / "recipe" / "recipe.yaml").read_text())
    assert recipe["base_model"] == f"org/model@{COMMIT}"
    assert recipe["models"][0]["model"] == f"org/model@{COMMIT}+{expert}"


def test_a_name_of_the_hub_stays_one_beside_a_folder_that_is_called_so(tmp_path, monkeypatch):
    def base(name, commits=None):
        return base_of_settings(SimpleNamespace(base=name), tmp_path, commits)

    assert base("hf://models/tiny@v1") == "hf://models/tiny@v1"
    assert base("hf://models/tiny", {"models/tiny": COMMIT}) == f"hf://models/tiny@{COMMIT}"
    assert base("org/model@v1") == "org/model@v1"
    (tmp_path / "elsewhere" / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")  # settings are read from another folder
    assert base("org/model") == "hf://org/model"


def test_what_init_finds_in_a_repository_that_is_named_as_a_folder_stays_one(
    hub_cache, tmp_path, make_adapter, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = make_adapter("one").parents[1]
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    files = ["experts/one/adapter_config.json", "experts/one/adapter_model.safetensors"]
    add_to_cache(hub_cache, "models/loras", folder, files=[*files, "base/config.json"])
    (found,) = named_adapters(["hf://models/loras"])
    assert found.hub == "hf://models/loras/experts/one"
    assert base_of_words(["hf://models/loras"]) == "hf://models/loras/base"
