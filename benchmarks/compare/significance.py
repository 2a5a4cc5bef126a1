"""By what methods are told apart: mean ranks, t tests, and Holm's correction."""

import math
import warnings
from collections.abc import Mapping

import pandas as pd

from benchmarks.compare.runs import Runs


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of several p values (S. Holm 1979).

    The smallest is multiplied by the number of tests, the next by one less, and none is below the
    one before.
    """
    corrected, largest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.get)):
        remaining = len(p_values) - place
        largest = max(largest, min(1.0, p_values[name] * remaining))
        corrected[name] = largest
    return corrected


def mean_ranks(runs: Runs, split: str) -> pd.Series:
    """Mean of the rank over the seeds that all methods have, by method; empty if there are none.

    1 is the best; equals share the mean of their ranks.
    """
    by_seed = runs.results[split].unstack("method").dropna()
    return by_seed.rank(axis=1, ascending=False).mean().dropna()


def on_shared_seeds(ours: pd.Series, theirs: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Scores of the seeds that both have."""
    return ours.align(theirs, join="inner")


def t_test(ours: pd.Series, theirs: pd.Series, *, paired: bool) -> float | None:
    """The p value of Welch's test, or of the paired t test on the seeds that both have.

    :param ours: scores by seed.
    :param theirs: scores by seed.
    :param paired: which is the sharper test where a seed draws its resampled dev sets.
    :return: None if one of them has fewer than two scores.
    """
    from scipy.stats import ttest_ind, ttest_rel

    if paired:
        ours, theirs = on_shared_seeds(ours, theirs)
    if min(len(ours), len(theirs)) < 2:
        return None
    with warnings.catch_warnings():  # where nearly nothing varies
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ttest_rel(ours, theirs) if paired else ttest_ind(ours, theirs, equal_var=False)
    p_value = float(test.pvalue)
    if math.isnan(p_value):  # nothing varies at all
        return float(ours.mean() == theirs.mean())
    return p_value


def corrected_tests(runs: Runs, reference: str, split: str, *, paired: bool) -> dict[str, float]:
    """The t test of every other method against the reference, with Holm's correction."""
    p_values = {}
    for name in runs.methods:
        if name == reference:
            continue
        p_value = t_test(runs.scores(reference, split), runs.scores(name, split), paired=paired)
        if p_value is not None:
            p_values[name] = p_value
    return holm(p_values)


def improvement_tests(gains: Mapping[str, pd.Series]) -> dict[str, float]:
    """One-sided t tests that mean gains are above 0, with Holm's correction.

    :param gains: by method, a number a seed. A method with a single one has no test.
    """
    from scipy.stats import ttest_1samp

    p_values = {}
    for name, gain in gains.items():
        if len(gain) < 2:
            continue
        with warnings.catch_warnings():  # where nothing varies
            warnings.simplefilter("ignore", RuntimeWarning)
            p_value = float(ttest_1samp(gain, 0, alternative="greater").pvalue)
        if math.isnan(p_value):
            p_value = 0.0 if gain.mean() > 0 else 1.0
        p_values[name] = p_value
    return holm(p_values)
