"""The best of several trained adapters against the best of several merges, on few examples.

Whoever is chosen on some examples is too good on these. So both are chosen on one half of the
examples and compared on the other, and the other way round (cross-fitting). The two comparisons
depend on each other: p is the smaller one, corrected for two (Bonferroni).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evox_evogm.command.uncertainty import Difference, paired_difference


class Compared(NamedTuple):
    """The scores of the chosen adapter and the chosen merge on examples they were not chosen on."""

    trained: float
    merge: float
    difference: Difference


def compare_chosen(
    trained: Sequence[Sequence[float]], merges: Sequence[Sequence[float]]
) -> Compared:
    """Compare the best adapter with the best merge, in the plain mean over examples.

    :param trained: the scores of each adapter on the same S examples, at least two.
    :param merges: those of each merge.
    """
    ours: list[float] = []
    theirs: list[float] = []
    halves = []
    for half in (0, 1):
        adapter = _scores_of_best(trained, half)
        merge = _scores_of_best(merges, half)
        ours += adapter
        theirs += merge
        halves.append(paired_difference({"half": adapter}, {"half": merge}))
    difference, se, _ = paired_difference({"all": ours}, {"all": theirs})
    known = [half for half in halves if not math.isnan(half.p)]
    p = math.nan
    if known:
        agreeing = [half.p for half in known if half.difference * difference > 0]
        p = min(1.0, 2 * min(agreeing, default=1.0))
    return Compared(_mean(ours), _mean(theirs), Difference(difference, se, p))


def compared_of(trial: Mapping) -> dict:
    """What was compared in a trial, and how many were tried; of an older one without cross-fitting.

    :param trial: what `trial.json` holds.
    """
    if "compared" in trial:
        return trial["compared"]
    scores = {row["name"]: float(row["score"]) for row in trial["scores"]}
    return {"trained LoRA": scores["trained LoRA"], "merge": scores[trial["best_merge"]]}


def _scores_of_best(models: Sequence[Sequence[float]], half: int) -> Sequence[float]:
    """The scores on one half of the examples of the model that is best on the other half.

    :param models: the scores of each.
    :param half: 0 or 1, the place of the first example by which the model is chosen.
    """
    best = max(models, key=lambda scores: _mean(scores[half::2]))
    return best[1 - half :: 2]


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)
