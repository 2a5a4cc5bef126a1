"""Which first tokens rows share."""

from evox_evogm.problems.inference.shared_prefixes import Row, common_prefix, shared_lengths


def make_rows(tokens, shareable, candidates=None):
    candidates = candidates or [0] * len(tokens)
    rows = []
    for row_tokens, candidate in zip(tokens, candidates, strict=True):
        rows.append(Row(row_tokens, candidate, shareable))
    return rows


def test_the_common_prefix_of_rows():
    assert common_prefix([(1, 2, 3, 4), (1, 2, 9), (1, 2, 3)]) == 2
    assert common_prefix([(1, 2), (1, 2, 3)]) == 2
    assert common_prefix([(1,), (2,)]) == 0


def test_continuations_of_one_prompt_share_it_up_to_its_last_token():
    tokens = [(5, 6, 7, 8, 1), (5, 6, 7, 8, 2), (9, 6, 7, 8, 1), (9, 6, 7, 8, 2)]
    assert shared_lengths(make_rows(tokens, 3)) == [3] * 4
    assert shared_lengths(make_rows(tokens, 3, [0, 1, 2, 3])) == [0] * 4  # no candidate has two


def test_few_shot_examples_are_shared_by_all_questions_of_a_candidate():
    tokens = [(*range(20), token, token + 1) for token in (50, 60, 70, 80)]
    assert shared_lengths(make_rows(tokens, 21)) == [20] * 4
    assert shared_lengths(make_rows(tokens * 2, 21, [0] * 4 + [1] * 4)) == [20] * 8


def test_a_small_saving_is_not_worth_a_pass_of_its_own():
    tokens = [(1, 2, *range(token, token + 20)) for token in (50, 80)]
    assert shared_lengths(make_rows(tokens, 20)) == [0, 0]
    assert shared_lengths(make_rows([(1, 2, 3)], 2)) == [0]
