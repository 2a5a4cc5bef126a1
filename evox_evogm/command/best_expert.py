"""The expert that is best on dev, and those that are level with it."""

import math
from collections.abc import Mapping, Sequence

from evox_evogm.command.scores import ScoreRow
from evox_evogm.problems.scalarization import Objective

NAMED = 3  # level models that are named; of more, how many


def best_places(scores: Sequence[float]) -> list[int]:
    """Where the highest score is, and then where others are that the report shows as the same.

    :param scores: NaN where one is not known.
    :return: none if no score is known.
    """
    known = [score for score in scores if not math.isnan(score)]
    if not known:
        return []
    best = max(known)
    places = [place for place, score in enumerate(scores) if round(score, 3) == round(best, 3)]
    return sorted(places, key=lambda place: -scores[place])


def best_experts_on_dev(rows: Sequence[ScoreRow], weights: Mapping[str, float]) -> list[ScoreRow]:
    """The expert with the best mean dev score, which is known before any test score.

    :param weights: of tasks in the mean; those without one weigh 1.
    :return: that expert, and then those that are level with it; none if no expert has a score.
    """
    objective = Objective(weights=weights)
    experts = [row for row in rows if row.kind == "expert"]
    scores = [objective.value(row.dev) for row in experts]
    return [experts[place] for place in best_places(scores)]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: all of a few, otherwise the first and how many others there are."""
    first, *others = names
    if not others:
        return first
    if len(names) > NAMED:
        return f"{first} and {len(others)} others"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def level_with(others: Sequence[str]) -> str:
    """What is said of a best model after its name; nothing if no other is level with it."""
    if len(others) > NAMED:
        return f", level with {len(others)} others"
    return f", level with {listed(others)}" if others else ""
