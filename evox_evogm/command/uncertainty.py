"""How sure scores are: standard errors, paired differences, and how many examples would decide.

Scores are means over tasks of means over examples. The examples of a task are taken as drawn at
random from all that it stands for.

- n answers that are all right or all wrong have no spread, and yet others may differ. Their
  standard error is the width of E. B. Wilson's score interval (JASA 22, 1927) for one standard
  error, 1 / (n + 1). Why this interval: L. Brown, T. Cai and A. DasGupta, Statistical Science 16,
  2001.
- Standard errors, paired differences and sample sizes of language model scores: E. Miller, "Adding
  Error Bars to Evals", 2024, arXiv 2411.00640; D. Card et al., "With Little Power Comes Great
  Responsibility", EMNLP 2020, arXiv 2010.06595.
- The mean over tasks has Welch's degrees of freedom (B. L. Welch, Biometrika 34, 1947).
- Several tests at once: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
- Reliability: C. Hoyt, "Test reliability estimated by analysis of variance", Psychometrika 6, 1941;
  over several tasks the stratified form of L. J. Cronbach, P. Schönemann and D. McKie, 1965. A
  merge takes the place of a person there, an example that of a test item.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch

ByTask = Mapping[str, Sequence[float]]  # a score per example, by task
LEVEL = 0.05  # of p, below which a difference is beyond chance
POWER = 0.8  # the probability with which a real difference is to be found
ROUNDING = 1e-9  # of the largest difference, below which a standard error is that of rounding
SMALLEST = 1e-300  # keeps a continued fraction from dividing by 0


class Difference(NamedTuple):
    """By how much one model is ahead of another, on the same examples."""

    difference: float
    """Of the means over tasks; NaN if a model has no scores."""
    se: float
    """Its standard error; NaN if a task has one example."""
    p: float
    """Of a two-sided t test that there is no difference; NaN if unknown."""


class Regression(NamedTuple):
    """Test scores as a straight line of dev scores, by least squares."""

    slope: float
    """The rise of the test score with a dev score that is higher by 1."""
    se: float
    """Its standard error; NaN with two rows."""
    rows: int
    """Of models that have both scores."""


def standard_error(scores: Sequence[float]) -> float:
    """The standard error of a mean score over examples; NaN with fewer than two.

    Scores that are all 0 or all 1 count as wrong and right answers, and have that of Wilson's
    interval. Of other equal scores it is not known: NaN.

    :param scores: of S examples.
    """
    count = len(scores)
    if count > 1 and min(scores) == max(scores):
        return 1 / (count + 1) if scores[0] in (0, 1) else math.nan
    return spread_error(scores)


def spread_error(values: Sequence[float]) -> float:
    """The standard error of a mean by the spread of its values; NaN with fewer than two.

    :param values: of S examples, such as differences of scores. If they are equal it is 0.
    """
    if len(values) < 2:
        return math.nan
    numbers = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    return float(numbers.std() / len(values) ** 0.5)


def standard_errors(scores: ByTask) -> dict[str, float]:
    """The standard error of each task's mean score.

    :param scores: of S examples, by task.
    """
    return {name: standard_error(values) for name, values in scores.items()}


def standard_error_of_mean(errors: Mapping[str, float]) -> float:
    """The standard error of a mean over tasks; NaN if one is unknown.

    :param errors: the standard error of each task's mean score.
    """
    if not errors:
        return math.nan
    return math.sqrt(sum(error**2 for error in errors.values())) / len(errors)


def paired_difference(
    a: ByTask,
    b: ByTask,
    *,
    weights: Mapping[str, float] | None = None,
    left_out: Sequence[str] = (),
) -> Difference:
    """By how much a model is ahead of another on the same examples.

    With one task this is the paired t test. If every difference within a task is the same, the t
    test knows no chance; p is then that of the exact sign test over the examples that differ.

    :param a: scores of one model, of S examples by task.
    :param b: those of the other.
    :param weights: of tasks in the mean, above 0; those without one weigh 1.
    :param left_out: tasks that do not count.
    :raises ValueError: if they are of other tasks, or of other numbers of examples.
    """
    if not a or not b:
        return Difference(math.nan, math.nan, math.nan)
    if a.keys() != b.keys():
        raise ValueError(f"scores: expected those of tasks {list(a)}, found {list(b)}")
    weights = weights or {}
    total, whole = 0.0, 0.0
    ahead, behind = 0, 0
    variances, freedom = [], []
    for name in a:
        if name in left_out:
            continue
        ours = torch.as_tensor(a[name], dtype=torch.float64, device="cpu")
        theirs = torch.as_tensor(b[name], dtype=torch.float64, device="cpu")
        if len(ours) != len(theirs):
            expected = f"expected {len(ours)} examples of task {name!r}"
            raise ValueError(f"scores: {expected}, found {len(theirs)}")
        differences = ours - theirs
        weight = weights.get(name, 1.0)
        whole += weight
        total += weight * float(differences.mean())
        ahead += int((differences > 0).sum())
        behind += int((differences < 0).sum())
        error = spread_error(differences.tolist())
        if error <= ROUNDING * float(differences.abs().max()):
            error = 0.0
        variances.append((weight * error) ** 2)
        freedom.append(len(differences) - 1)
    difference = total / whole
    se = math.sqrt(sum(variances)) / whole
    if se > 0:
        p = student_t_p(difference / se, degrees_of_freedom(variances, freedom))
    elif math.isnan(se):
        p = math.nan
    else:
        p = sign_test_p(ahead, behind)
    return Difference(difference, se, p)


def single_scores(scores: ByTask) -> list[str]:
    """The tasks with one score, whose chance nobody knows; none if no task has more.

    :param scores: of S examples, by task.
    """
    single = [name for name, values in scores.items() if len(values) < 2]
    return single if len(single) < len(scores) else []


def sign_test_p(ahead: int, behind: int) -> float:
    """The probability that so many coins, or more, fall on one side: two-sided, exact.

    :param ahead: of the examples that differ, those in which one model is better.
    :param behind: those in which the other is.
    """
    count = ahead + behind
    tail = 0.0
    for fewer in range(min(ahead, behind) + 1):
        log_ways = math.lgamma(count + 1) - math.lgamma(fewer + 1) - math.lgamma(count - fewer + 1)
        tail += math.exp(log_ways - count * math.log(2))
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of the p values of several tests; NaN of those that are unknown.

    The smallest is multiplied by the number of tests, the next by one less, and none is below the
    one before.
    """
    corrected = [math.nan] * len(p_values)
    tests = [place for place, p in enumerate(p_values) if not math.isnan(p)]
    largest = 0.0
    for rank, place in enumerate(sorted(tests, key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, p_values[place] * (len(tests) - rank)))
        corrected[place] = largest
    return corrected


def degrees_of_freedom(variances: Sequence[float], freedom: Sequence[int]) -> float:
    """Welch's degrees of freedom of a sum of independent means.

    :param variances: the squared standard error of each mean; not all are 0.
    :param freedom: the degrees of freedom of each.
    """
    below = 0.0
    for variance, degrees in zip(variances, freedom, strict=True):
        below += variance**2 / degrees
    return sum(variances) ** 2 / below


def student_t_p(t: float, freedom: float) -> float:
    """The probability that a t-distributed number is at least as far from 0.

    It is the regularised incomplete beta function at freedom / (freedom + t^2).

    :param t: a number, which may be infinite.
    :param freedom: degrees of freedom, above 0.
    """
    if math.isnan(t) or math.isnan(freedom):
        return math.nan
    if math.isinf(t):
        return 0.0
    x = freedom / (freedom + t * t)
    a, b = freedom / 2, 0.5
    if x >= 1:
        return 1.0
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    factor = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta)
    if x < (a + 1) / (a + b + 2):
        return factor * _beta_fraction(a, b, x) / a
    return 1 - factor * _beta_fraction(b, a, 1 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method.

    W. H. Press et al., "Numerical Recipes", section 6.4.
    """
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for coefficient in (even, odd):
            d = 1 / _not_zero(1 + coefficient * d)
            c = _not_zero(1 + coefficient / c)
            change = c * d
            result *= change
        if abs(change - 1) < 1e-14:
            break
    return result


def _not_zero(number: float) -> float:
    return number if abs(number) > SMALLEST else SMALLEST


def examples_to_tell_apart(
    found: Difference, examples: int, *, level: float = LEVEL, power: float = POWER
) -> int | None:
    """How many examples would show a difference, if it is as large as it was found to be.

    The share of each task stays the same. A z test of this level finds the difference with
    probability `power`.

    :param found: the difference on the examples that there are.
    :param examples: how many these are, over all tasks.
    :return: the number over all tasks, or None if no number is known to be enough.
    """
    difference, se, _ = found
    if not se > 0 or not difference:
        return None
    normal = NormalDist()
    distance = normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)
    return math.ceil(examples * (distance * se / difference) ** 2)


def dev_test_regression(dev: Sequence[float], test: Sequence[float]) -> Regression | None:
    """The least-squares line of the test scores of several models over their dev scores.

    :param dev: the mean dev score of each model; NaN if it has none.
    :param test: the mean test score of each.
    :return: None with fewer than two models, or if all have one dev score.
    """
    known = []
    for pair in zip(dev, test, strict=True):
        if all(map(math.isfinite, pair)):
            known.append(pair)
    if len(known) < 2:
        return None
    x, y = torch.tensor(known, dtype=torch.float64, device="cpu").T
    x, y = x - x.mean(), y - y.mean()
    spread = float(x @ x)
    if spread <= 1e-18 * len(known):
        return None
    slope = float(x @ y) / spread
    left = float((y - slope * x).square().sum())
    se = math.sqrt(left / (len(known) - 2) / spread) if len(known) > 2 else math.nan
    return Regression(slope, se, len(known))


def reliability(scores: Mapping[str, torch.Tensor]) -> float | None:
    """How much of a difference between merges on dev is expected on other examples, 0 to 1.

    It is the variance between merges without the chance of the choice of examples, divided by the
    variance that was observed. What all merges find equally hard is no chance: it cancels in
    differences. If merges were fitted to these very examples, it is an upper limit.

    :param scores: by task an `(H, S)` tensor of H merges on the same S examples.
    :return: None with fewer than three merges, with one example in a task, or if all merges have
        one mean score.
    """
    means, noise = [], 0.0
    for values in scores.values():
        values = values.to("cpu", torch.float64)
        merges, examples = values.shape
        if merges < 3 or examples < 2:
            return None
        by_merge = values.mean(1)  # (H,)
        rest = values - by_merge[:, None] - values.mean(0) + values.mean()
        freedom = (merges - 1) * (examples - 1)
        noise += float(rest.square().sum()) / freedom / examples
        means.append(by_merge)
    if not means:
        return None
    observed = float(torch.stack(means).mean(0).var())
    if observed <= 1e-18:
        return None
    return max(0.0, 1 - noise / len(means) ** 2 / observed)
