"""Which examples a report shows, by hand."""

from evox_evogm.command.choose_examples import choose_examples, count_patterns

SCORES = {  # of the tasks a and b, by example
    "base": {"a": [0.0, 0.0, 0.0, 1.0, 1.0], "b": [0.0, 0.0]},
    "expert": {"a": [0.0, 0.0, 1.0, 1.0, 1.0], "b": [1.0, 0.0]},
    "merge": {"a": [1.0, 1.0, 0.0, 1.0, 1.0], "b": [1.0, 1.0]},
}


def test_examples_are_counted_by_who_is_ahead():
    assert count_patterns(SCORES) == {
        "merge over expert": 3,
        "expert over merge": 1,
        "both over base": 1,
        "base over both": 0,
        "alike": 2,
    }


def test_wins_losses_and_common_wins_are_taken_in_turn_from_tasks_in_turn():
    # A win, a loss, and what both have over the base. Then a win of the task that was taken less.
    expected = [("a", 0), ("a", 2), ("b", 0), ("b", 1), ("a", 1)]
    assert choose_examples(SCORES, 5) == expected
    assert choose_examples(SCORES, 3) == expected[:3]


def test_where_all_score_alike_examples_are_taken_last_and_none_twice():
    chosen = choose_examples(SCORES, 20)
    assert chosen[5:] == [("a", 3), ("a", 4)] and len(set(chosen)) == 7
