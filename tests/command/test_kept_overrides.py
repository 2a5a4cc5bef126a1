"""The words of a command line, and those that a run folder keeps."""

import json

import yaml

from evox_evogm.command.kept_overrides import (
    all_words,
    keep_overrides,
    kept_overrides,
    with_kept,
)


def test_options_become_words_that_yaml_reads_as_they_were():
    options = {"budget": 60, "seed": None, "device": "cuda:1", "dtype": "60"}
    words = all_words(["search.epochs=2"], options)
    assert words == ["search.epochs=2", "budget=60", "device=cuda:1", 'dtype="60"']
    for word, value in zip(words[1:], (60, "cuda:1", "60"), strict=True):
        assert yaml.safe_load(word.partition("=")[2]) == value


def test_what_is_given_now_stands_in_place_of_what_was_kept():
    kept = ["seed=9", "budget=8"]
    assert with_kept(["budget=13", "pop_size=2"], kept) == (
        ["seed=9", "budget=13", "pop_size=2"],
        ["seed=9"],
    )
    assert with_kept([], kept) == (kept, kept)


def test_a_run_folder_keeps_words(tmp_path):
    assert kept_overrides(tmp_path) == []  # it is no run
    (tmp_path / "config.yaml").touch()
    (tmp_path / "inputs.json").write_text(json.dumps({"format": 3}))
    assert kept_overrides(tmp_path) == []  # as of an earlier version
    keep_overrides(tmp_path, ["seed=9"])
    assert kept_overrides(tmp_path) == ["seed=9"]
    assert json.loads((tmp_path / "inputs.json").read_text())["format"] == 3
    keep_overrides(tmp_path, ["seed=9", "budget=8"])
    keep_overrides(tmp_path, ["budget=13", "racing=true"], but=["budget", "stop"])
    assert kept_overrides(tmp_path) == ["racing=true", "budget=8"]
    (tmp_path / "inputs.json").write_text("{")
    assert kept_overrides(tmp_path) == []
