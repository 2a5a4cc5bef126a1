"""The first paragraph: what came out, and whether that is beyond chance."""

import math
from statistics import NormalDist

from evox_evogm.command.html_report.formats import short, with_error
from evox_evogm.command.html_report.run_data import Row, RunData
from evox_evogm.command.significance import not_beyond_chance, p_value, remarks_on_chance
from evox_evogm.command.uncertainty import LEVEL, Difference
from evox_evogm.monitoring.counted import counted


def what_came_out(run: RunData) -> str:
    """One sentence: the mean test scores, with errors, of merge, base, best expert and average."""
    test = sum(task["test"] for task in run.result["tasks"].values())
    merge = run.merge.mean("test")
    if math.isnan(merge.value):
        return "The merge has no test score."
    rivals = []
    for row, words in _rivals(run):
        score = row.mean("test")
        shown = "no score" if math.isnan(score.value) else with_error(score.value, score.error)
        rivals.append(f"{words} {shown}")
    return (
        f"On {counted(test, 'test example')} that the search did not see, the merge scores "
        f"{with_error(merge.value, merge.error)}, {_listed(rivals)}."
    )


def _rivals(run: RunData) -> list[tuple[Row, str]]:
    """The rows that the merge is compared with, and how they are named."""
    found = []
    best = run.best_expert
    base = run.row_of("base")
    if base is not None:
        found.append((base, "the base"))
    if best is not None:
        name = f"{best.name}{run.level_with_best}"
        found.append((best, f"the expert that is best on dev ({name})"))
    for kind, words in (("average", "the average of the experts"), ("RegMean", "RegMean")):
        row = run.row_of(kind)
        if row is not None:
            found.append((row, words))
    return found


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def is_it_chance(run: RunData) -> list[str]:
    """Sentences about the lead of the merge over the best expert, the average, and other merges.

    Older runs have no statistics. Their scores are taken as independent of each other.
    """
    statistics = run.result.get("statistics")
    if statistics:
        gains = {**run.result, "statistics": {**statistics, "best_two": None}}
        return remarks_on_chance(gains) + not_beyond_chance(run.result)
    sentences = []
    for kind, words in (("expert", "the best expert"), ("average", "the average")):
        row = run.best_expert if kind == "expert" else run.row_of(kind)
        if row is not None:
            sentences.append(_sentence(unpaired_lead(run.merge, row), words))
    if any("p = " in sentence or "p < " in sentence for sentence in sentences):
        sentences.append("Examples are not paired here, which is cautious.")
    return sentences


def unpaired_lead(merge: Row, row: Row) -> Difference:
    """The lead of the merge over a row on test, as of independent examples.

    :return: the difference, its standard error, and the p value of a two-sided z test.
    """
    ours, theirs = merge.mean("test"), row.mean("test")
    difference = ours.value - theirs.value
    se = math.hypot(ours.error, theirs.error)
    if not se > 0:
        return Difference(difference, math.nan, math.nan)
    p = 2 * (1 - NormalDist().cdf(abs(difference) / se))
    return Difference(difference, se, p)


def _sentence(found: Difference, rival: str) -> str:
    difference, se, p = found
    if math.isnan(difference):
        return f"It cannot be compared with {rival}: scores are missing."
    lead = f"{short(abs(difference))} {'above' if difference >= 0 else 'below'} {rival}"
    if math.isnan(p):
        return f"It is {lead}; the examples do not say whether that is chance."
    verdict = "beyond chance" if p < LEVEL else "this may be chance"
    return f"It is {lead} (± {short(se)}): {verdict} ({p_value(p)})."
