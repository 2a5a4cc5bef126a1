"""Standard errors, paired tests and sample sizes, compared with scipy and with simulations."""

import math

import pytest
import torch
from scipy import stats

from evox_evogm.command.number_format import with_error
from evox_evogm.command.uncertainty import (
    Difference,
    dev_test_regression,
    examples_to_tell_apart,
    holm,
    paired_difference,
    reliability,
    single_scores,
    spread_error,
    standard_error,
    standard_error_of_mean,
    standard_errors,
    student_t_p,
)

NAN = math.nan


def draw(*shape, seed=0, of=torch.randn):
    return of(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_standard_error_of_a_mean_is_that_of_scipy():
    scores = (draw(17, of=torch.rand) < 0.4).double().tolist()
    assert standard_error(scores) == pytest.approx(stats.sem(scores))
    assert standard_errors({"x": scores, "y": [1.0]}) == pytest.approx(
        {"x": stats.sem(scores), "y": NAN}, nan_ok=True
    )


@pytest.mark.parametrize("count", [2, 12, 500])
def test_equal_answers_have_the_error_of_wilsons_interval(count):
    one_error = 2 * stats.norm.cdf(1) - 1  # the confidence of an interval of one standard error
    right = stats.binomtest(count, count).proportion_ci(one_error, method="wilson")
    wrong = stats.binomtest(0, count).proportion_ci(one_error, method="wilson")
    assert standard_error([1.0] * count) == pytest.approx(right.high - right.low)
    assert standard_error([0.0] * count) == pytest.approx(wrong.high - wrong.low)
    nearly = [1.0] * (count - 1) + [0.0]
    assert (
        standard_error([1.0] * count) < standard_error(nearly) == pytest.approx(stats.sem(nearly))
    )


def test_of_other_equal_values_nothing_is_known():
    assert math.isnan(standard_error([0.4, 0.4, 0.4])) and math.isnan(standard_error([1.0]))
    assert spread_error([1.0, 1.0]) == 0 and math.isnan(spread_error([1.0]))
    both_right = paired_difference({"x": [1.0] * 9}, {"x": [1.0] * 9})
    assert both_right == (0, 0, 1)  # of two models that answer alike


def test_an_error_of_nothing_is_not_shown():
    assert with_error(1.0, standard_error([1.0] * 12)) == "1.000 ± .077"
    assert with_error(0.25, 0.0) == with_error(0.25, NAN) == ".250"


def test_errors_of_tasks_add_up_to_that_of_their_mean():
    assert standard_error_of_mean({"x": 0.03, "y": 0.04}) == pytest.approx(0.025)
    assert math.isnan(standard_error_of_mean({"x": 0.03, "y": NAN}))
    assert math.isnan(standard_error_of_mean({}))


@pytest.mark.parametrize("freedom", [0.7, 1, 2.5, 12, 400, 1e6])
@pytest.mark.parametrize("t", [0.0, 1e-9, 0.3, -1.0, 2.2, 9.0, 60.0])
def test_p_is_that_of_scipys_t_distribution(t, freedom):
    expected = 2 * stats.t.sf(abs(t), freedom)
    assert student_t_p(t, freedom) == pytest.approx(expected, rel=1e-8, abs=1e-290)


def test_p_at_the_ends():
    assert student_t_p(math.inf, 3) == 0
    assert math.isnan(student_t_p(NAN, 3))


def test_with_one_task_it_is_the_paired_t_test():
    a, b = draw(30).tolist(), (draw(30, seed=1) + 0.4).tolist()
    found = paired_difference({"x": a}, {"x": b})
    expected = stats.ttest_rel(a, b)
    assert found.difference / found.se == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)


def test_with_two_tasks_it_has_the_error_and_the_freedom_of_welchs_test():
    first, second = draw(9), 3 * draw(25, seed=1) + 1
    ours = {"x": first.tolist(), "y": second.tolist()}
    found = paired_difference(ours, {"x": [0.0] * 9, "y": [0.0] * 25})
    expected = stats.ttest_ind(first, -second, equal_var=False)
    assert found.difference == pytest.approx(float(first.mean() + second.mean()) / 2)
    assert found.difference / found.se == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)


def test_models_that_answer_alike_do_not_differ():
    scores = {"x": [1.0, 0.0], "y": [1.0, 1.0]}
    assert paired_difference(scores, scores) == (0, 0, 1)


def test_where_all_examples_change_alike_p_is_that_of_the_sign_test():
    found = paired_difference({"x": [1.0] * 4}, {"x": [0.0] * 4})
    assert found[:2] == (1, 0)
    assert found.p == pytest.approx(stats.binomtest(4, 4, 0.5).pvalue)


def test_the_sign_test_counts_both_directions():
    found = paired_difference({"a": 10 * [1.0], "b": 8 * [0.0]}, {"a": 10 * [0.0], "b": 8 * [1.0]})
    assert found[:2] == (0, 0)
    assert found.p == pytest.approx(stats.binomtest(10, 18, 0.5).pvalue)


def test_a_spread_that_is_rounding_is_none():
    theirs = [0.1 * number for number in range(8)]
    ours = [score + 0.1 for score in theirs]
    assert stats.sem([a - b for a, b in zip(ours, theirs, strict=True)]) > 0
    found = paired_difference({"x": ours}, {"x": theirs})
    assert found.se == 0 and found.p == pytest.approx(2 / 2**8)


def test_a_weighted_mean_has_weighted_errors_and_welchs_freedom():
    first, second = draw(9), 3 * draw(25, seed=1) + 1
    ours, theirs = {"x": first.tolist(), "y": second.tolist()}, {"x": [0.0] * 9, "y": [0.0] * 25}
    found = paired_difference(ours, theirs, weights={"x": 3.0})
    expected = stats.ttest_ind(3 * first, -second, equal_var=False)
    assert found.difference == pytest.approx(float(3 * first.mean() + second.mean()) / 4)
    assert found.difference / found.se == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)


def test_a_task_with_one_score_can_be_left_out():
    ours = {"x": draw(12).tolist(), "bleu": [0.7]}
    theirs = {"x": draw(12, seed=1).tolist(), "bleu": [0.2]}
    assert single_scores(ours) == ["bleu"] and single_scores({"bleu": [0.7]}) == []
    assert math.isnan(paired_difference(ours, theirs).p)
    found = paired_difference(ours, theirs, left_out=["bleu"])
    assert found.p == pytest.approx(stats.ttest_rel(ours["x"], theirs["x"]).pvalue)


def test_holms_correction_is_that_of_its_definition():
    # .01 * 4, .02 * 3, .03 * 2, and .9 * 1; an unknown one is no test.
    assert holm([0.03, 0.9, NAN, 0.01, 0.02]) == pytest.approx(
        [0.06, 0.9, NAN, 0.04, 0.06], nan_ok=True
    )


@pytest.mark.parametrize(("a", "b"), [({}, {"x": [1.0]}), ({"x": [1.0]}, {"x": [0.0]})])
def test_without_scores_or_with_one_example_nothing_is_sure(a, b):
    assert math.isnan(paired_difference(a, b).se) and math.isnan(paired_difference(a, b).p)


def test_a_flat_task_counts_in_the_mean_and_adds_no_chance():
    a, b = draw(12).tolist(), draw(12, seed=1).tolist()
    alone = paired_difference({"x": a}, {"x": b})
    both = paired_difference({"x": a, "flat": [0.5] * 3}, {"x": b, "flat": [0.5] * 3})
    assert both == pytest.approx((alone.difference / 2, alone.se / 2, alone.p))


def test_scores_of_other_tasks_or_examples_are_refused():
    with pytest.raises(ValueError, match=r"expected those of tasks \['x'\], found \['y'\]"):
        paired_difference({"x": [1.0]}, {"y": [1.0]})
    with pytest.raises(ValueError, match="expected 1 examples of task 'x', found 2"):
        paired_difference({"x": [1.0]}, {"x": [1.0, 0.0]})


def test_as_many_examples_as_it_says_find_the_difference_as_often_as_it_says():
    few = 0.3 + draw(50)
    found = Difference(0.3, 1 / 50**0.5, NAN)
    needed = examples_to_tell_apart(found, len(few))
    assert needed == math.ceil((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 / 0.09)
    drawn = 0.3 + draw(4000, needed, seed=2)
    beyond_chance = stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05
    assert beyond_chance.mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("found", [(0.0, 0.1), (0.1, NAN), (NAN, NAN), (0.1, 0.0)])
def test_no_number_of_examples_is_given_where_none_is_known(found):
    assert examples_to_tell_apart(Difference(*found, NAN), 10) is None


def test_the_line_through_dev_and_test_is_that_of_scipy():
    dev, test = draw(8), 0.5 * draw(8) + 0.1 * draw(8, seed=1)
    expected = stats.linregress(dev, test)
    found = dev_test_regression([*dev.tolist(), NAN, 1.0], [*test.tolist(), 1.0, NAN])
    assert found == pytest.approx((expected.slope, expected.stderr, 8))


def test_no_line_goes_through_one_row_or_one_dev_score():
    assert dev_test_regression([0.5, NAN], [0.5, 0.4]) is None
    assert dev_test_regression([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]) is None
    two = dev_test_regression([0.0, 1.0], [0.0, 0.5])
    assert two[0] == pytest.approx(0.5) and math.isnan(two.se)


def test_reliability_is_the_slope_from_some_examples_to_others():
    ability = 0.5 * draw(400, 1)
    hardness = 3 * draw(1, 40, seed=1)
    scores = ability + hardness + 2 * draw(400, 40, seed=2)
    other_scores = ability + draw(1, 40, seed=3) + 2 * draw(400, 40, seed=4)
    slope = stats.linregress(scores.mean(1), other_scores.mean(1)).slope
    assert reliability({"x": scores}) == pytest.approx(0.25 / (0.25 + 4 / 40), abs=0.04)
    assert reliability({"x": scores}) == pytest.approx(slope, abs=0.06)


def cronbach_alpha(scores):
    """The formula of the textbooks for an (H, S) table."""
    items = scores.shape[1]
    return items / (items - 1) * (1 - scores.var(0).sum() / scores.sum(1).var())


def test_reliability_of_one_task_is_cronbachs_alpha():
    scores = draw(30, 1) + draw(30, 8, seed=1)
    assert reliability({"x": scores}) == pytest.approx(float(cronbach_alpha(scores)))


def test_reliability_over_tasks_is_the_stratified_alpha():
    tasks = {"x": draw(30, 1) + draw(30, 8, seed=1), "y": draw(30, 1) + 2 * draw(30, 5, seed=2)}
    means = [scores.mean(1) for scores in tasks.values()]
    chance = 0.0
    for scores, mean in zip(tasks.values(), means, strict=True):
        chance += float(mean.var() * (1 - cronbach_alpha(scores)))
    expected = 1 - chance / float((means[0] + means[1]).var())
    assert reliability(tasks) == pytest.approx(expected)


def test_where_all_is_chance_nothing_is_reliable():
    assert reliability({"x": draw(300, 10)}) < 0.15


@pytest.mark.parametrize("shape", [(2, 5), (5, 1)])
def test_reliability_takes_three_merges_and_two_examples(shape):
    assert reliability({"x": draw(*shape)}) is None
    assert reliability({"x": torch.ones(5, 5)}) is None
    assert reliability({}) is None
