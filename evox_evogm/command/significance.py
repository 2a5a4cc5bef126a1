"""Whether a merge is better than others beyond chance, for `result.json`, report and terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from evox_evogm.command.best_expert import best_experts_on_dev, level_with
from evox_evogm.command.number_format import short, with_error
from evox_evogm.command.scores import ByExample, ScoreRow, known_examples, label
from evox_evogm.command.uncertainty import (
    LEVEL,
    Difference,
    Regression,
    dev_test_regression,
    examples_to_tell_apart,
    holm,
    paired_difference,
    reliability,
    single_scores,
)
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.scalarization import MEAN, Objective

RIVALS = ("average", "RegMean", "trained")  # kinds of rows that a merge is compared with


@dataclass(frozen=True)
class HistoryScores:
    """The dev scores by example of the different merges that a search evaluated whole.

    :param by_task: an `(H, S)` tensor of each task.
    :param scores: H numbers, what the search made large.
    """

    by_task: Mapping[str, torch.Tensor]
    scores: Sequence[float]

    @property
    def merges(self) -> int:
        """H."""
        for table in self.by_task.values():
            return len(table)
        return 0

    def best_first(self) -> list[int]:
        """The merges in the order of their scores."""
        return sorted(range(self.merges), key=lambda row: -self.scores[row])

    def of_merge(self, row: int) -> ByExample:
        """The scores of one merge."""
        return {name: table[row].tolist() for name, table in self.by_task.items()}


def history_scores(problem: LoRAMergeProblem, records: Sequence[dict]) -> HistoryScores:
    """The scores of a history, from the cache of the problem.

    Merges that failed or have no score on all examples are left out, and so are merges that the
    cache does not have.

    :param records: the history.
    """
    points = {tuple(record["coefficients"]): record["score"] for record in records}
    rows: dict[str, list[Sequence[float]]] = {task.name: [] for task in problem.tasks}
    known_scores = []
    for point, score in points.items():
        found = known_examples(problem, torch.tensor(point))
        if found.keys() != rows.keys():
            continue
        known_scores.append(score)
        for name, scores in found.items():
            rows[name].append(scores)
    for table in rows.values():
        if len({len(values) for values in table}) != 1:  # none, or not of the same examples
            return HistoryScores({}, ())
    tables = {name: torch.tensor(scores) for name, scores in rows.items()}
    return HistoryScores(tables, known_scores)


def describe_significance(
    rows: Sequence[ScoreRow], history: HistoryScores, objective: Objective = MEAN
) -> dict:
    """What `result.json` says under `statistics`.

    :param rows: of the final table, the merge last.
    :param history: the merges that the search evaluated.
    :param objective: of the search. A weighted mean is compared as such; otherwise, as the error
        of a worst task or a harmonic mean is not known, the plain mean.
    :return: with None for what is not known
        - `mean`: in which models are compared, weighted or plain;
        - `gains`: the lead of the merge over the expert that is best on dev, the average, and other
          rows, in both splits, with p corrected for the number of rows, and the tasks that are
          left out because they have one score; of the expert also `level_with`, the experts that
          are as good on dev;
        - `best_two`: the lead of the best merge of the history over the next one, and how many dev
          examples would tell them apart; None if there are none that differ;
        - `reliability`: see `uncertainty.reliability`, and over how many `merges`;
        - `regression`: of test scores on dev scores over the rows; None if there is none.
    """
    merges = [row for row in rows if row.kind != "trained"]  # which has learnt the dev answers
    dev = [mean(row.dev) for row in merges]
    test = [mean(row.test) for row in merges]
    line = dev_test_regression(dev, test)
    share = reliability(history.by_task)
    weights = weights_of(objective)
    return {
        "mean": "weighted" if weights else "plain",
        "gains": gains_of_merge(rows, weights),
        "best_two": compare_best_two(history, weights),
        "reliability": None if share is None else known(share),
        "merges": history.merges,
        "regression": None if line is None else as_table(line),
    }


def weights_of(objective: Objective) -> Mapping[str, float]:
    """The weights of tasks by which models are compared; empty for a plain mean."""
    return objective.weights if objective.kind == "mean" and objective.is_weighted else {}


def known(number: float) -> float | None:
    """A number, or None if it is not finite."""
    return number if math.isfinite(number) else None


def as_table(found: Difference | Regression) -> dict:
    """Numbers by their names, with None for those that are not known."""
    return {name: known(number) for name, number in found._asdict().items()}


def as_difference(table: Mapping) -> Difference:
    """The difference in a table."""
    numbers = [table[name] for name in Difference._fields]
    return Difference(*[math.nan if number is None else number for number in numbers])


def mean(scores: Mapping[str, float]) -> float:
    """The mean over tasks."""
    return sum(scores.values()) / len(scores)


def gains_of_merge(rows: Sequence[ScoreRow], weights: Mapping[str, float]) -> list[dict]:
    """The lead of the last row, the merge, over the rows that it should be ahead of.

    :param weights: of tasks in the mean; those without one weigh 1.
    """
    merge = rows[-1]
    if merge.kind != "merge":
        return []
    rivals = [row for row in rows if row.kind in RIVALS]
    level = best_experts_on_dev(rows, weights)
    rivals = level[:1] + rivals
    gains = []
    for rival in rivals:
        gain: dict = {"over": label(rival.kind, rival.name), "kind": rival.kind}
        if rival.kind == "expert":
            gain["level_with"] = [label("expert", row.name) for row in level[1:]]
        for split in ("dev", "test"):
            ours, theirs = merge.examples.get(split, {}), rival.examples.get(split, {})
            left_out = single_scores(ours)
            found = paired_difference(ours, theirs, weights=weights, left_out=left_out)
            gain[split] = {**as_table(found), "left_out": left_out}
        gains.append(gain)
    for split in ("dev", "test"):
        corrected = holm([as_difference(gain[split]).p for gain in gains])
        for gain, p in zip(gains, corrected, strict=True):
            gain[split]["corrected_p"] = known(p)
    return gains


def compare_best_two(history: HistoryScores, weights: Mapping[str, float]) -> dict | None:
    """The lead of the best merge over the next one that scores differently in some example.

    :param weights: as of `gains_of_merge`.
    """
    if history.merges < 2:
        return None
    first, *others = history.best_first()
    best = history.of_merge(first)
    left_out = single_scores(best)
    examples = 0
    for name, scores in best.items():
        examples += 0 if name in left_out else len(scores)
    for row in others:
        next_best = history.of_merge(row)
        if next_best != best:
            found = paired_difference(best, next_best, weights=weights, left_out=left_out)
            needed = examples_to_tell_apart(found, examples)
            counts = {"examples": examples, "needed": needed, "left_out": left_out}
            return {**as_table(found), **counts}
    return None


def remarks_on_chance(result: dict) -> list[str]:
    """What the statistics of a run say of its merge: the sentences for report and terminal.

    :param result: what `result.json` holds; older ones have no statistics.
    """
    found = result.get("statistics")
    if not found:
        return []
    remarks: list[str] = []
    tested = [gain for gain in found["gains"] if gain["test"]["p"] is not None]
    for gain in found["gains"]:
        remarks += _remark_on_gain(gain, _basis(result, gain["test"]), len(tested))
    if found["best_two"]:
        basis = _basis(result, found["best_two"])
        remarks.append(_remark_on_best_two(found["best_two"], basis))
    return remarks


def not_beyond_chance(result: dict) -> list[str]:
    """One sentence if the merge is not better than the best expert or the average beyond chance.

    :param result: what `result.json` holds; older ones have no statistics.
    """
    found = result.get("statistics") or {"gains": []}
    rivals = []
    for gain in found["gains"]:
        test = as_difference(gain["test"])
        p = gain["test"].get("corrected_p")
        p = test.p if p is None else p
        is_better = test.difference > 0 and p < LEVEL  # neither where they are not known
        if gain["kind"] == "expert" and not is_better:
            level = level_with(gain.get("level_with", []))
            rivals.append(f"{sanitize(gain['over'])}, the best expert on dev{sanitize(level)},")
        elif gain["kind"] == "average" and not is_better:
            rivals.append("the average of the experts")
    if not rivals:
        return []
    than = " or than ".join(rivals).rstrip(",")
    return [
        f"The merge is not better beyond chance than {than}, by these test examples; more of them "
        "would tell more."
    ]


def _basis(result: dict, compared: Mapping) -> str:
    """By what two models are compared, where that is not simply the mean over all tasks.

    :param compared: a difference, with the tasks that are left out.
    """
    words = ""
    if result["statistics"].get("mean", "plain") == "weighted":
        words = "in the weighted mean of the tasks"
    elif result.get("objective", "mean") != "mean" or result.get("weights"):
        words = "in the plain mean of the tasks"
    left_out = compared.get("left_out", [])
    if left_out:
        words += f"{' ' if words else ''}without {', '.join(map(sanitize, left_out))} (one score)"
    return words


def _remark_on_gain(gain: dict, basis: str, comparisons: int) -> list[str]:
    """The lead of the merge over one row on test, and whether it is beyond chance.

    :param basis: see `_basis`.
    :param comparisons: for which p is corrected.
    """
    test = as_difference(gain["test"])
    if not math.isfinite(test.difference):
        return []
    rival = gain["over"]
    if gain["kind"] == "expert":
        rival = f"{rival}, the expert that is best on dev{level_with(gain.get('level_with', []))}"
    elif gain["kind"] == "average":
        rival = "the average"
    on = f"On test, {basis}, it is" if basis else "On test it is"
    if test.difference == 0:
        return [f"{on} level with {rival}."]
    where = "above" if test.difference > 0 else "below"
    lead = f"{on} {short(abs(test.difference))}"
    if math.isnan(test.p):
        return [f"{lead} {where} {rival}; the examples do not say whether that is chance."]
    p = gain["test"].get("corrected_p")
    p, by_holm = (test.p, "") if p is None else (p, f", by Holm over {comparisons}")
    verdict = "beyond chance" if p < LEVEL else "this may be chance"
    how = p_value(p) + (by_holm if comparisons > 1 else "")
    return [f"{on} {with_error(abs(test.difference), test.se)} {where} {rival}: {verdict} ({how})."]


def _remark_on_best_two(found: dict, basis: str) -> str:
    """How far the two best merges are apart, and how many examples would decide.

    :param basis: see `_basis`.
    """
    difference, se, p = as_difference(found)
    apart = f"The two best merges of the search are {with_error(abs(difference), se)}"
    on = f"on {found['examples']:,} dev examples{f', {basis}' if basis else ''}"
    if math.isnan(se):
        return f"{apart} apart {on}."
    apart = f"{apart} apart {on}"
    if p < LEVEL:
        return f"{apart}: beyond chance ({p_value(p)})."
    if found["needed"] is None:
        return f"{apart}: no number of examples is known to tell them apart."
    if found["needed"] <= found["examples"]:  # half of such differences are shown by fewer
        return f"{apart}: it would take somewhat more than these to tell them apart."
    return f"{apart}: it would take about {round_up(found['needed']):,} to tell them apart."


def further_remarks(result: dict) -> list[str]:
    """How much of a dev gain survives on test: sentences for the report alone.

    :param result: what `result.json` holds; older ones have no statistics.
    """
    found = result.get("statistics")
    if not found:
        return []
    remarks = []
    for gain in found["gains"]:
        dev, test = (as_difference(gain[split]).difference for split in ("dev", "test"))
        if gain["kind"] == "average" and dev > 0 and math.isfinite(test):
            gain_by_split = f"{short(dev)} on dev and {short(test)} on test"
            remarks.append(f"Its gain over the average is {gain_by_split}.")
    if found["reliability"] is not None:
        share = f"{100 * found['reliability']:.0f} %"
        of = f"over {found['merges']} merges of the search"
        remarks.append(
            f"Of a difference between merges on dev, at most {share} is expected on other examples "
            f"(reliability {of}); less, the more the search fitted them to the dev examples."
        )
    line = found["regression"]
    if line and line["se"] is not None:
        rise = f"{with_error(line['slope'] / 10, line['se'] / 10)}"
        over = f"Over the {line['rows']} models of the table"
        remarks.append(f"{over}, a dev score higher by .1 goes with a test score {rise} higher.")
    return remarks


def p_value(p: float) -> str:
    """A p value as it is written in a text."""
    return "p < .001" if p < 0.001 else f"p = {short(p)}"


def round_up(number: int) -> int:
    """A number with two digits that count."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
