"""What metrics make of generated texts: the choice that one names, and whether one agrees with a
target.
"""

import pytest

from evox_evogm.problems.tasks.choices import parse_choice
from evox_evogm.problems.tasks.exact_match import agrees, is_decided

BIRDS = {"A": "a bird", "B": "not a bird", "C": "Paris", "D": ""}


@pytest.mark.parametrize(
    ("output", "key"),
    [
        # First: an explicit answer, wherever it stands and whatever else is named.
        (" The answer is B because it has no wings", "B"),
        ("so the ANSWER IS: C for all of these reasons", "C"),
        ("the answer is (B) for all of these reasons", "B"),
        ("A or B? The answer is C, although some would say D", "C"),
        ("the answer is unclear at first, then the answer is B, and not C", "B"),
        # Second: a key in the first five characters, before one in the last five.
        ("B", "B"),
        (" B. wren", "B"),
        ("A dog, so B", "A"),
        ("    B is what I would take", "B"),
        ("     B is what I would take", None),
        # Third: a key in the last five characters, the last one if there are more.
        ("It has to be B", "B"),
        ("It has to be B) so", "B"),
        ("It has to be B) now", None),
        ("Of all I take C or A", "A"),
        ("I rule out A, so it is C", "C"),
        # A key stands alone.
        ("An apple", None),
        ("Could be", None),
        ("The answer is Able", None),
        ("BA", None),
        ("B2", None),
        ("the answer is b", None),
        # Fourth: the text of a choice, in whatever case, and the longest that is there.
        ("it should be paris", "C"),
        (" surely not a bird", "B"),
        (" surely a bird", "A"),
        ("Paris? Yes: B", "B"),
        ("it is " + "." * 89 + "Paris", "C"),
        ("it is " + "." * 90 + "Paris", None),
        # Otherwise there is no answer; an empty choice is in no text.
        ("no idea", None),
        ("", None),
    ],
)
def test_a_choice_is_parsed_in_the_papers_order_of_attempts(output, key):
    assert parse_choice(output, BIRDS) == key


def test_a_key_may_begin_another_or_hold_signs():
    assert parse_choice(" 10 ", {"1": "one", "10": "ten"}) == "10"
    assert parse_choice("it is a+", {"a": "x", "a+": "y"}) == "a"
    assert parse_choice("abc", {".": "x", "b.": "y"}) is None


@pytest.mark.parametrize(
    ("output", "target", "match", "expected"),
    [
        ("12", "12", "equal", True),
        (" 12\n", "12 ", "equal", True),
        ("12.", "12", "equal", False),
        ("Twelve", "twelve", "equal", False),
        ("", "12", "equal", False),
        ("it is 12.", "12", "contains", True),
        ("it is 2", "12", "contains", False),
        ("12 b c d e f g h i j", "12", "last_10_words", True),
        ("12 b c d e f g h i j k", "12", "last_10_words", False),
        ("a b c so it is $12.", "12", "last_10_words", True),
        ("it is one hundred", "one hundred", "last_10_words", True),
    ],
)
def test_a_text_agrees_with_a_target_as_the_match_says(output, target, match, expected):
    assert agrees(output, target, match) is expected


@pytest.mark.parametrize(
    ("text", "match", "expected"),
    [
        ("", "equal", False),
        (" \n", "equal", False),
        (" ye", "equal", False),
        ("yes", "equal", False),  # " yes" may still become "yesterday"
        ("yes \n", "equal", False),
        ("yes ma", "equal", True),
        ("yesm", "equal", True),
        ("no", "equal", True),
        (" \n n", "equal", True),
        ("y\ufffd", "equal", False),
        ("so yes", "contains", True),
        ("so ye", "contains", False),
        ("so yes", "last_10_words", False),
    ],
)
def test_a_text_is_decided_when_nothing_that_follows_can_change_its_score(text, match, expected):
    assert is_decided(text, " yes", match) == expected
    endings = ["", " ", "s", "es", "yes", " yes", "\n", "m"]
    if expected and match != "contains":
        assert not any(agrees(text + ending, " yes", match) for ending in endings)
    elif expected:
        assert all(agrees(text + ending, "yes", match) for ending in endings)
