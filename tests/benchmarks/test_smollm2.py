"""The questions of the suite smollm2."""

import pytest

from benchmarks.suites import smollm2

pytest.importorskip("reasoning_gym")


def prompts(split, dev_examples=None):
    found = {}
    for task in smollm2.tasks(8, split, dev_examples=dev_examples):
        found[task.name] = [example.prompt for example in task.examples]
    return found


def test_few_dev_questions_are_the_first_of_many():
    few, many = prompts("dev"), prompts("dev", 30)
    assert len(few) == 11
    for name, questions in many.items():
        assert len(questions) == 30
        assert questions[:6] == few[name]


def test_more_test_questions_begin_with_the_others_and_are_not_in_dev():
    dev, test, more = prompts("dev", 30), prompts("test"), prompts("test", 30)
    for name, questions in more.items():
        assert (len(test[name]), len(questions)) == (24, 100)
        assert questions[:24] == test[name]
        assert not set(questions) & set(dev[name])
