"""Metrics of the harness, and margins by hand."""

import math

import pytest
import torch
from harness_tasks import metrics, write_task

from evox_evogm.problems import read_lm_eval
from evox_evogm.problems.tasks.harness.metric import HarnessMetric

pytestmark = pytest.mark.lengthy  # lm-eval takes seconds to import


@pytest.fixture
def read(tmp_path):
    """A function that reads a task of choices (two, three or four) with changes; its source."""

    def read_one(metric="acc", **changes):
        write_task(tmp_path / "tasks", "choices", "choices", **changes)
        dev, _ = read_lm_eval("choices", metric=metric, include_path=str(tmp_path / "tasks"))
        return dev.sources[0]

    return read_one


def judge(source, place, *log_likelihoods, leads=()):
    """The score of a document, and its margin."""
    answers = [(value, False) for value in log_likelihoods]
    (score,) = source.score([place], [answers])
    leads = leads or [0.0] * len(answers)
    return score, source.metric.margin(place, float(score), log_likelihoods, leads)


def test_the_margin_of_choices_is_the_lead_of_the_right_one(read):
    source = read()
    assert judge(source, 1, -2.0, -1.5, -4.0) == (1.0, 0.5)  # the second of three is right
    assert judge(source, 1, -1.0, -1.5, -1.25) == (0.0, -0.5)


def test_by_characters_and_by_bytes(read):
    """Document 1 has the choices red, dark green and blue."""
    assert judge(read("acc_norm"), 1, -3.0, -5.0, -6.0) == (1.0, pytest.approx(-0.5 + 1.0))
    assert judge(read("acc_bytes"), 1, -3.0, -20.0, -6.0) == (0.0, pytest.approx(-2.0 + 1.0))


def test_choices_may_be_compared_with_what_they_are_without_the_question(read):
    source = read("acc_mutual_info", metric_list=metrics("acc_mutual_info"))
    found = judge(source, 1, -3.0, -5.0, -6.0, -1.0, -4.5, -2.0)
    assert found == (1.0, pytest.approx(-0.5 + 2.0))
    weights = source.metric.lead_weights(1, [-3.0, -5.0, -6.0, -1.0, -4.5, -2.0])
    others = torch.tensor([-2.0, -4.0]).softmax(0)
    expected = torch.tensor([-others[0], 1.0, -others[1], others[0], -1.0, others[1]])
    torch.testing.assert_close(weights, expected)


def test_several_choices_may_be_right(read):
    source = read(doc_to_target="{{[0, 1]}}")
    assert judge(source, 1, -4.0, -1.0, -3.0) == (1.0, 2.0)
    assert judge(source, 1, -4.0, -3.5, -1.0) == (0.0, -2.5)
    assert source.metric.lead_weights(1, [-4.0, -1.0, -3.0]).tolist() == [0.0, 1.0, -1.0]


def test_a_document_without_a_right_choice_is_wrong(read):
    source = read(doc_to_target="{{gold * 7}}")
    score, margin = judge(source, 1, -1.0, -2.0, -3.0)
    assert score == 0.0 and margin <= 0


def test_a_merge_that_gives_nan_has_no_margin(read):
    _, margin = judge(read(), 1, math.nan, math.nan, math.nan)
    assert math.isnan(margin)


def test_the_lead_of_the_right_choice_decides_an_exact_match(read):
    source = read("exact_match")
    (score,) = source.score([1], [[(-1.0, True), (-2.0, True), (-3.0, False)]])
    assert score == 1.0
    assert source.metric.margin(1, 1.0, [-1.0, -2.0, -3.0], [0.5, 0.25, -1.0]) == 0.25


def test_the_first_metric_that_is_better_when_higher_is_taken(read):
    entries = [*metrics("brier_score", higher=False), *metrics("acc_norm", "acc")]
    task = read("acc", metric_list=entries).task
    assert HarnessMetric(task).name == "acc_norm"
    assert HarnessMetric(task, "brier_score").sign == -1


def test_a_score_of_all_documents_stands_for_each(read):
    """F1 of the answers 0, 1 for the right ones 0, 1: the second class is found."""
    entry = {"metric": "f1", "aggregation": "f1", "higher_is_better": True}
    source = read("f1", metric_list=[entry])
    answers = [[(-1.0, False), (-2.0, False)], [(-2.0, False), (-1.0, False), (-3.0, False)]]
    assert source.score([0, 1], answers).tolist() == [1.0, 1.0]
    answers[1] = [(-1.0, False), (-2.0, False), (-3.0, False)]
    assert source.score([0, 1], answers).tolist() == [0.0, 0.0]
    assert not source.metric.by_sign


@pytest.fixture
def read_scored(tmp_path):
    """A function that reads a task whose answers a function scores; its source."""

    def read_one(body):
        write_task(tmp_path / "tasks", "lengths", "lengths", metric_list=metrics("length", "other"))
        (tmp_path / "tasks" / "scoring.py").write_text(f"def length(doc, results):\n    {body}\n")
        dev, _ = read_lm_eval("lengths", metric="length", include_path=str(tmp_path / "tasks"))
        return dev.sources[0], dev

    return read_one


def test_a_metric_that_some_documents_lack_is_one_of_all_together(read_scored):
    """The second of two documents has another metric, of 9, which is not taken for it."""
    source, task = read_scored("return {'other': 9.0} if doc['gold'] else {'length': 0.5}")
    assert source.score([0, 1], [["a"], ["b"]]).tolist() == [0.5, 0.5]
    assert not task.scores_by_example


def test_a_metric_that_some_answers_lack_has_no_score(read_scored):
    source, task = read_scored("return {'length': 0.5} if results[0] == 'a' else {'other': 1.0}")
    assert task.scores_by_example and source.score([0], [["a"]]).tolist() == [0.5]
    with pytest.raises(RuntimeError, match="expected length of all 2 documents, found that 1 have"):
        source.score([0, 1], [["a"], ["b"]])


def test_a_function_may_name_its_only_result_otherwise(read_scored):
    source, _ = read_scored("return {'pass@1': 0.25}")
    assert source.score([0, 1], [["a"], ["b"]]).tolist() == [0.25, 0.25]
