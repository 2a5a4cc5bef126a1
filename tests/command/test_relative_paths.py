"""Paths in a settings file: relative where the file can be moved together with what it names."""

import json
import os
from pathlib import Path

import pytest
import yaml
from builders import change_settings

from evox_evogm.command import cli
from evox_evogm.command.early_checks import check_early
from evox_evogm.command.experts import expert_folders
from evox_evogm.command.relative_paths import path_between, path_from, place_of
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.sources import base_of_settings


@pytest.fixture
def place(tmp_path):
    for folder in ("project/adapters/one", "project/merges/first", "elsewhere/deep/er", "two"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    "start, expected",
    [
        ("project", "adapters/one"),
        ("project/adapters/one", "."),
        ("project/merges", "../adapters/one"),
        ("project/merges/first", "../../adapters/one"),
        ("two", "../project/adapters/one"),
        ("elsewhere/deep/er", None),
    ],
)
def test_a_path_is_relative_below_and_a_short_way_beside(place, start, expected, monkeypatch):
    adapter, folder = place / "project" / "adapters" / "one", place / start
    found = path_from(adapter, folder)
    assert found == (str(adapter.resolve()) if expected is None else expected)
    assert (folder / found).samefile(adapter)
    monkeypatch.chdir(place / "project" / "adapters")
    assert path_from(adapter.relative_to(place / "project" / "adapters"), folder) == found


def test_a_link_below_the_folder_stays_a_link(place):
    link = place / "project" / "linked"
    link.symlink_to(place / "elsewhere" / "deep", target_is_directory=True)
    assert path_from(link / "er", place / "project") == "linked/er"


def test_below_the_root_nothing_is_shared(place):
    top = Path(place.resolve().anchor)
    folders = [one for one in top.iterdir() if one.is_dir() and not one.is_symlink()]
    first, second = folders[:2]  # two folders that share nothing else, such as /home and /usr
    assert path_from(first, second) == str(first)
    assert os.path.isabs(path_from(place.resolve().parents[-2], place))


def test_between_folders(place):
    assert path_between(place / "project", place / "project" / "merges" / "first") == "../.."


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    return folder


def test_a_path_that_begins_with_a_tilde_is_in_the_home_folder(home):
    settings = Path("/settings")
    assert place_of("~/adapters/one", settings) == home / "adapters" / "one"
    assert place_of("~", settings) == home
    for name in ("~root/one", "~one", "a/~/one", "./~/one", "one~"):
        assert place_of(name, settings) == settings / name


@pytest.mark.slow
def test_all_paths_of_settings_may_begin_with_a_tilde(project, home, capsys, monkeypatch):
    for name in ("base", "experts", "dev.jsonl", "test.jsonl", "quiz.json"):
        (project / name).rename(home / name)
    monkeypatch.chdir(project)
    settings = yaml.safe_load((project / "run.yaml").read_text())
    sums, quiz = settings["tasks"]
    sums |= {"json_lines": "~/dev.jsonl", "test_file": "~/test.jsonl", "dev": 2, "test": 2}
    quiz |= {"swarm_eval": "~/quiz.json", "test": 2}
    del settings["base"]  # it lies beside the experts
    settings |= {"experts": "~/experts", "budget": 4, "contributions": False}
    (project / "run.yaml").write_text(yaml.safe_dump(settings))
    (home / "template.jinja").write_text("{{ messages[0].content }}")
    assert cli.main(["merge", "run.yaml", "experts=~/experts", "--out=~/out"]) in (0, 3)
    adapter = json.loads((home / "out" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(home / "base")
    config = yaml.safe_load((home / "out" / "config.yaml").read_text())
    assert (config["base"], config["experts"]) == ("~/base", "~/experts")
    moved = home.rename(home.with_name("moved"))
    monkeypatch.setenv("HOME", str(moved))
    monkeypatch.setenv("USERPROFILE", str(moved))
    capsys.readouterr()
    assert cli.main(["merge", "run.yaml", "--out=~/out"]) in (0, 3)
    assert "finished" in capsys.readouterr().out


def test_a_path_in_the_home_folder_is_given_in_each_form_of_a_setting(project, home, capsys):
    for name in ("base", "experts"):
        (project / name).rename(home / name)
    (home / "template.jinja").write_text("{{ messages[0].content }}")
    change_settings(
        project, base="~/base", experts="~/experts", chat_template_file="~/template.jinja"
    )
    settings, folder = read_settings(project / "run.yaml")
    check_early(settings, folder)
    assert base_of_settings(settings, folder) == str(home / "base")
    first = home / "experts" / "first"
    for experts in (["~/experts/first"], {"first": "~/experts/first"}):
        assert expert_folders(experts, folder) == {"first": first}
    for word, message in (
        ("tasks.0.json_lines=~/dve.jsonl", f"expected a file, found none at {home / 'dve.jsonl'}"),
        ("base=~/bsae", f"found no such folder at {home / 'bsae'}; did you mean '{home / 'base'}'"),
        ("experts=~/exprets", f"found no such folder; did you mean '{home / 'experts'}'?"),
        ("experts=[~/experts/frist]", f"found no such folder; did you mean '{first}'?"),
        ("chat_template_file=~/none", f"found none at {home / 'none'}"),
    ):
        assert cli.main(["score", str(project / "run.yaml"), "base", "--set", word]) == 2
        assert message in capsys.readouterr().err


def test_init_takes_paths_in_the_home_folder(project, home, monkeypatch):
    for name in ("base", "experts", "dev.jsonl", "test.jsonl"):
        (project / name).rename(home / name)
    monkeypatch.chdir(project)
    words = ["~/experts", "--base=~/base", "--task", "~/dev.jsonl,~/test.jsonl", "--replace"]
    assert cli.main(["init", *words]) == 0
    settings = yaml.safe_load((project / "run.yaml").read_text())
    assert (project / settings["base"]).samefile(home / "base")
    assert (project / settings["experts"]["first"]).samefile(home / "experts" / "first")
    assert (project / settings["tasks"][0]["test_file"]).samefile(home / "test.jsonl")


@pytest.mark.parametrize("words", [["--out", "~/x"], ["--out=~/x"], ["-o", "~/x"], ["-o~/x"]])
def test_a_path_in_quotes_is_in_the_home_folder_in_each_form_of_an_option(
    home, tmp_path, monkeypatch, capsys, words
):
    monkeypatch.chdir(tmp_path)
    (home / "x").touch()  # so that it is refused at once
    assert cli.main(["init", "adapters", *words]) == 2
    assert f"out: expected a new file, found {home / 'x'}" in capsys.readouterr().err


def test_each_argument_that_is_a_path_may_be_in_the_home_folder(home, tmp_path, capsys):
    for words, found in (
        (["merge", "~/none.yaml"], home / "none.yaml"),
        (["check", "~/none.yaml"], home / "none.yaml"),
        (["score", "~/none.yaml"], home / "none.yaml"),
        (["report", "~/none"], home / "none"),
        (["export", "~/none"], home / "none"),
        (["compare", "~/none:average", "~/none"], home / "none:average"),
        (["init", "~/none"], home / "none"),
    ):
        assert cli.main(words) == 2
        assert str(found) in capsys.readouterr().err, words
    assert not (tmp_path / "~").exists()
