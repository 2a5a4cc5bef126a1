"""The setting `trackers` of a run."""

import logging
import sys
from types import ModuleType

import pytest
from builders import change_settings, merge

from evox_evogm.command.tracker_settings import check_trackers, final_numbers


@pytest.mark.parametrize(
    "entries, expected",
    [
        (["tensorbord"], "trackers: found the unknown setting 'tensorbord'; did you mean"),
        ([{"wandb": {"projekt": "p"}}], "trackers: wandb: found the unknown setting 'projekt'"),
        ([{"wandb": {"project": 3}}], "trackers: expected project to be a text, found 3"),
        ([3], "trackers: expected a name, or a table of a name and its options, found 3"),
    ],
)
def test_what_is_no_tracker_is_refused_in_a_sentence(entries, expected):
    with pytest.raises(ValueError, match=expected):
        check_trackers(entries)


def test_names_and_tables_are_taken():
    check_trackers(["tensorboard", {"wandb": {"project": "p", "name": "n"}}])


def test_the_final_numbers_are_means_over_tasks():
    rows = [
        {"name": "a", "kind": "expert", "dev": {"t": 0.5, "u": 1.0}, "test": {"t": 0.0, "u": 0.5}},
        {"name": "EvoGM", "kind": "merge", "dev": {"t": 1, "u": 1}, "test": {"t": 1, "u": 0}},
    ]
    expected = {"final_dev/a": 0.75, "final_test/a": 0.25}
    expected |= {"final_dev/merge": 1.0, "final_test/merge": 0.5}
    assert final_numbers({"scores": rows}) == expected


@pytest.fixture
def trackio(monkeypatch):
    """A stand-in for trackio, and its calls."""
    module, calls = ModuleType("trackio"), []
    module.init = lambda **named: calls.append(("init", named))
    module.log = lambda metrics, step=None: calls.append((step, metrics))
    module.finish = lambda: calls.append(("finish", {}))
    monkeypatch.setitem(sys.modules, "trackio", module)
    return calls


@pytest.mark.lengthy
def test_a_run_tells_its_tracker_all_and_one_that_fails_does_not_end_it(
    project, trackio, monkeypatch, caplog
):
    def down(**_):
        raise ConnectionError("no route")

    wandb = ModuleType("wandb")
    wandb.init = down
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    change_settings(project, trackers=["wandb", {"trackio": {"project": "mine"}}], budget=8)
    with caplog.at_level(logging.WARNING, logger="evox_evogm"):
        assert merge(project) == 0
    warnings = [line.getMessage() for line in caplog.records if "Wandb" in line.getMessage()]
    expected = "Wandb has failed and is left out from here on: ConnectionError: no route"
    assert warnings == [expected]
    (name, begun), *logged, last = trackio
    assert (name, begun["project"]) == ("init", "mine")
    assert begun["name"] == (project / "out" / "trackio_run_id").read_text()
    assert begun["config"]["tasks.1.dev"] == 4
    *evaluations, final = logged
    assert [step for step, _ in evaluations] == list(range(1, 9))
    assert {"score", "best", "task/sums", "coefficient/first"} <= evaluations[0][1].keys()
    assert final[0] == 8 and "final_test/merge" in final[1]
    assert last == ("finish", {})


def test_a_missing_package_is_refused_before_anything_is_read(project, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    change_settings(project, trackers=["wandb"])
    assert merge(project) == 2
    captured = capsys.readouterr()
    assert "trackers: expected the package wandb, found none: pip install wandb" in captured.err
    assert "reading the base" not in captured.out and not (project / "out").exists()
