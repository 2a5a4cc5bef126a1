"""A task that could not be scored is refused when it is made."""

import pytest

from evox_evogm.problems.tasks.task import Example, Task, check_disjoint

CHOICES = (("A", "yes"), ("B", "no"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"metric": "guess"},
            "task 't': metric: expected one of choice_likelihood, .*, found 'guess'$",
        ),
        (
            {"metric": "choice_likelyhood"},
            "task 't': metric: .*, found 'choice_likelyhood'; did you mean 'choice_likelihood'\\?$",
        ),
        (
            {"match": "like"},
            "task 't': match: expected one of equal, contains, last_10_words, found 'like'",
        ),
        (
            {"continuation": "both"},
            "task 't': continuation: expected one of key, text, found 'both'",
        ),
        ({"examples": ()}, "task 't': expected at least one example, found none"),
        ({"max_new_tokens": 0}, "task 't': expected max_new_tokens to be at least 1, found 0"),
        (
            {"examples": (Example("7", "q", " "),)},
            "task 't', example '7': expected an answer, found an empty text",
        ),
        (
            {"examples": (Example("7", "q", "C", CHOICES),)},
            "example '7': expected the answer to be one of A, B, found 'C'",
        ),
        ({"metric": "choice_likelihood"}, "one of its choices \\(it has none\\), found '4'"),
        (
            {"examples": (Example("7", "q", "a"), Example("7", "r", "a"))},
            "task 't': expected different ids, found '7' more than once",
        ),
        ({"chat": 1}, "task 't': expected chat to be true or false, found 1"),
        ({"max_new_tokens": True}, "expected max_new_tokens to be a whole number, found True"),
        ({"match": None}, "task 't': expected match to be a text, found None"),
    ],
)
def test_a_task_that_cannot_be_scored_is_refused(change, message):
    arguments = {
        "name": "t",
        "version": "1",
        "metric": "exact_match",
        "examples": (Example("0", "2+2", "4"),),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        Task(**arguments)


def test_take_keeps_the_first_examples_and_everything_else():
    examples = tuple(Example(str(index), f"q{index}", "a") for index in range(5))
    task = Task("t", "1", "exact_match", examples, max_new_tokens=3)
    assert [example.id for example in task.take(2).examples] == ["0", "1"]
    assert task.take(2).max_new_tokens == 3


def test_dev_and_test_may_not_share_a_question():
    dev = [Example("0", "same", "a"), Example("1", "other", "a")]
    test = [Example("9", "same", "b")]
    message = "expected dev and test to share no question, found 1 of 1 test questions in dev"
    with pytest.raises(ValueError, match=message):
        check_disjoint("t", dev, test)
    check_disjoint("t", dev[1:], test)
