"""Names beside a path that does not exist."""

from evox_evogm.near_path import near_path


def test_a_name_that_is_like_it_is_suggested(tmp_path):
    (tmp_path / "my-adapters").mkdir()
    near = str(tmp_path / "my-adapters")
    assert near_path(tmp_path / "my-adapter") == f"; did you mean {near!r}?"


def test_nothing_is_suggested_where_nothing_is_like_it(tmp_path):
    (tmp_path / "my-adapters").mkdir()
    assert near_path(tmp_path / "run.yaml") == ""
    assert near_path(tmp_path / "none" / "run.yaml") == ""
    assert near_path(tmp_path / "my-adapters") == ""  # it is there


def test_an_ending_alone_makes_no_names_alike(tmp_path):
    (tmp_path / "dev.jsonl").touch()
    assert near_path(tmp_path / "nowhere.jsonl") == ""
    for name in ("dve.jsonl", "deev.jsonl", "dev.json"):
        assert near_path(tmp_path / name).endswith("dev.jsonl'?")
