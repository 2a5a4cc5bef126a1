"""One number an expert: its coefficient, or with groups the mean of its coefficients."""

from collections.abc import Sequence


def means_by_expert(
    coefficients: Sequence[float],
    experts: Sequence[str],
    groups: int = 1,
    used: Sequence[bool] = (),
) -> dict[str, float]:
    """The coefficient of every expert, or its mean over groups.

    :param coefficients: n g numbers, expert after expert.
    :param experts: the n names.
    :param groups: g.
    :param used: for each coefficient whether it weighs anything; an expert may lack a module. The
        others do not count in a mean. All count without it.
    :return: by name; 0 for an expert none of whose coefficients weighs anything.
    """
    means = {}
    for number, name in enumerate(experts):
        places = range(number * groups, (number + 1) * groups)
        counted = [coefficients[place] for place in places if not used or used[place]]
        means[name] = sum(counted) / len(counted) if counted else 0.0
    return means
