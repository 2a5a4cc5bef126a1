"""Runs whose base and experts are on the hub: one line of settings, and the same commits again."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from builders import change_settings, history, merge
from fake_hub import COMMIT, LATER, add_to_cache

from evox_evogm.command import cli
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.sources import saved_commits
from evox_evogm.problems.adapters.hub_source import parse_hub_source

PUBLISHED = "TaoJiangCN/qwen-lora-experts"


@pytest.fixture
def repository(project, tmp_path):
    """A copy of the layout of the paper's published experts: base/ and experts/NAME/."""
    folder = tmp_path / "files"
    for name in ("base", "experts"):
        shutil.copytree(project / name, folder / name)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture
def published(repository, hub_cache):
    """The hub's cache with that repository."""
    add_to_cache(hub_cache, PUBLISHED, repository)
    return hub_cache


@pytest.mark.lengthy
def test_one_line_names_the_published_experts_and_their_base(project, published, repository):
    assert merge(project, out="local") == 0
    change_settings(project, base=..., experts=PUBLISHED)
    assert merge(project) == 0
    assert history(project / "out") == history(project / "local")
    inputs = json.loads((project / "out" / "inputs.json").read_text())
    assert inputs["hub"] == {PUBLISHED: COMMIT}
    local = json.loads((project / "local" / "inputs.json").read_text())
    assert inputs["sha256"] == local["sha256"] and "hub" not in local
    result = json.loads((project / "out" / "result.json").read_text())
    at = f"{PUBLISHED}@{COMMIT}"
    expected = {"base": f"{at}/base"}
    expected |= {f"expert {name}": f"{at}/experts/{name}" for name in ("first", "second")}
    assert result["sources"] == expected
    assert any(note.startswith(f"from the hub: base {at[:-28]}/base") for note in result["notes"])
    assert result["licences"]["licence"] == "apache-2.0"  # of the card of the repository
    card = (project / "out" / "adapter" / "README.md").read_text()
    assert f"expert first: {PUBLISHED}@{COMMIT}/experts/first" in card
    # The branch moves on, and the run does not.
    path = repository / "experts" / "first" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 80}))
    add_to_cache(published, PUBLISHED, repository, LATER)
    assert merge(project, "--budget", "25") == 0
    assert len(history(project / "out")) > len(history(project / "local"))
    assert saved_commits(project / "out") == {PUBLISHED: COMMIT}
    assert merge(project, out="new") == 0
    assert saved_commits(project / "new") == {PUBLISHED: LATER}


def test_the_base_beside_the_experts_is_the_default(project, repository):
    change_settings(project, base=..., experts="files")
    settings, _ = read_settings(project / "run.yaml")
    assert (settings.base, settings.experts) == ("files/base", "files")
    change_settings(project, experts=["files/experts/first"])
    with pytest.raises(ValueError, match="expected the setting 'base', found none"):
        read_settings(project / "run.yaml")


def test_the_settings_that_the_guide_shows_are_accepted(tmp_path):
    guide = Path(__file__).parents[2] / "evox_evogm" / "command" / "EXPERTS.md"
    found = []
    for example in re.findall(r"```yaml\n(.*?)```", guide.read_text(), flags=re.DOTALL):
        task = "tasks: [{json_lines: dev.jsonl, test_file: test.jsonl}]\n"
        (tmp_path / "run.yaml").write_text(example + task)
        settings, folder = read_settings(tmp_path / "run.yaml")
        experts = settings.experts
        words = list(experts.values()) if isinstance(experts, dict) else [experts]
        found += [str(parse_hub_source(word, folder)) for word in [settings.base, *words]]
    repository = "TaoJiangCN/qwen2.5-1.5b-tulu-v2-lora-experts"
    assert found[:3] == [f"{repository}/base", repository, "Qwen/Qwen2.5-1.5B-Instruct@main"]
    assert found[3:] == ["someone/qwen-code-lora", "someone/qwen-loras@v2/maths", "None"]


def test_what_is_not_in_the_cache_is_one_sentence(project, hub_cache, capsys):
    change_settings(project, experts={"one": "experts/first", "two": "org/loras@v1/code"})
    assert merge(project) == 2
    assert capsys.readouterr().err == (
        "evogm: expert 'two' (org/loras@v1/code): expected a folder or a hub id, found neither a "
        "folder 'org/loras@v1/code' nor org/loras in the hub's cache, and HF_HUB_OFFLINE is set; "
        "where there is a network: hf download org/loras --revision v1\n"
    )
    change_settings(project, experts=["experts/frist"])
    assert merge(project) == 2
    assert "experts/frist): expected a folder with" in capsys.readouterr().err
    assert not (project / "out").exists()


@pytest.mark.lengthy
def test_init_and_check_take_hub_ids(project, published, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert cli.main(["init", PUBLISHED, "--out", "all.yaml"]) == 0
    assert f"base: {PUBLISHED}/base (as it lies beside the adapters)" in capsys.readouterr().out
    settings = yaml.safe_load((project / "all.yaml").read_text())
    names = {name: f"{PUBLISHED}/experts/{name}" for name in ("first", "second")}
    assert settings["experts"] == names and settings["base"] == f"{PUBLISHED}/base"
    assert cli.main(["init", f"{PUBLISHED}@main/experts/first", "--base", "base"]) == 2
    assert cli.main(["init", f"{PUBLISHED}@main/experts/first", "--base", "base", "--replace"]) == 0
    settings = yaml.safe_load((project / "run.yaml").read_text())
    assert settings["experts"] == {"first": f"{PUBLISHED}@main/experts/first"}
    capsys.readouterr()
    words = ["mode=unmerged", "tasks.0.dev=2"]
    assert cli.main(["check", "all.yaml", "--device", "cpu", *words]) == 0
    printed = capsys.readouterr().out
    assert f"note: from the hub: base {PUBLISHED}@{COMMIT[:12]}/base, expert first " in printed
    assert "expert: second, rank 2, 4 modules, norm " in printed


def test_init_takes_what_a_trainer_left(project, make_adapter, monkeypatch, capsys):
    monkeypatch.chdir(project)
    for step in (20, 100):
        shutil.move(make_adapter("one", seed=step), project / "output" / f"checkpoint-{step}")
    assert cli.main(["init", "output", "--base", "base", "--out", "new.yaml"]) == 0
    settings = yaml.safe_load((project / "new.yaml").read_text())
    assert settings["experts"] == {"output": "output/checkpoint-100"}
