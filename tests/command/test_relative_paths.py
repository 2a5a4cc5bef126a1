"""Paths in a settings file: relative where the file can be moved together with what it names."""

import os
from pathlib import Path

import pytest

from evox_evogm.command.relative_paths import path_between, path_from


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
