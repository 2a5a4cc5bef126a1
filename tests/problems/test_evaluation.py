"""What is written down of an evaluation, and read again."""

import json

import pytest

from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.resume.resumable_search import plain

EVALUATION = Evaluation((0.5, -1.0), {"add": (1.0, 0.0), "pick": (1.0, 1.0, 1.0, 0.0)}, 0.25)


def test_the_score_is_the_mean_over_tasks_of_the_means_over_examples():
    assert EVALUATION.by_task == {"add": 0.5, "pick": 0.75} and EVALUATION.score == 0.625


def test_a_record_holds_what_was_asked_and_found_and_is_read_as_the_same():
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
    record = json.loads(json.dumps(plain(failed.as_record()), allow_nan=False))
    assert (
        record["coefficients"] == [0.5, "nan"]
        and record["score"] is None
        and record["failure"] == "RuntimeError: broken"
    )
    assert repr(Evaluation.from_record(record)) == repr(failed)


def test_an_evaluation_cannot_be_changed():
    with pytest.raises(AttributeError):
        EVALUATION.seconds = 0
