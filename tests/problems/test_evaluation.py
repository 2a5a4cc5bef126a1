"""Evaluations, and the records that they are written to and read from."""

import json
from dataclasses import replace

import pytest

from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.resume.journal import to_json

EVALUATION = Evaluation((0.5, -1.0), {"add": (1.0, 0.0), "pick": (1.0, 1.0, 1.0, 0.0)}, 0.25)


def test_the_score_is_the_mean_over_tasks_of_the_means_over_examples():
    assert EVALUATION.by_task == {"add": 0.5, "pick": 0.75} and EVALUATION.score == 0.625


def test_a_record_holds_what_was_evaluated_and_found_and_is_read_as_the_same():
    record = EVALUATION.as_record()
    assert record == {
        "score": 0.625,
        "tasks": {"add": 0.5, "pick": 0.75},
        "coefficients": [0.5, -1.0],
        "examples": {"add": [1.0, 0.0], "pick": [1.0, 1.0, 1.0, 0.0]},
        "seconds": 0.25,
    }
    assert Evaluation.from_record({**json.loads(json.dumps(record)), "round": 0}) == EVALUATION


def test_a_failure_has_a_reason_no_score_and_is_worst():
    failed = Evaluation((0.5, float("nan")), {}, 0.1, "RuntimeError: broken")
    assert failed.score == float("-inf")
    record = json.loads(json.dumps(to_json(failed.as_record()), allow_nan=False))
    assert (
        record["coefficients"] == [0.5, "nan"]
        and record["score"] is None
        and record["failure"] == "RuntimeError: broken"
    )
    assert repr(Evaluation.from_record(record)) == repr(failed)


def test_an_evaluation_cannot_be_changed():
    with pytest.raises(AttributeError):
        EVALUATION.seconds = 0


def test_a_pruned_merge_has_its_estimate_for_a_score():
    pruned = Evaluation((0.5,), {"add": (1.0,)}, 0.1, cost=0.5, estimate=0.25)
    assert pruned.score == 0.25 and pruned.by_task == {"add": 1.0}
    record = pruned.as_record()
    assert record["score"] == record["estimate"] == 0.25 and record["cost"] == 0.5
    assert Evaluation.from_record(json.loads(json.dumps(record))) == pruned


def test_margins_are_written_where_there_are_some():
    with_margins = replace(EVALUATION, margins={"add": (0.5, -1.0), "pick": (1.0, 2.0, 3.0, -4.0)})
    record = with_margins.as_record()
    assert record["margins"] == {"add": [0.5, -1.0], "pick": [1.0, 2.0, 3.0, -4.0]}
    assert Evaluation.from_record(json.loads(json.dumps(record))) == with_margins
