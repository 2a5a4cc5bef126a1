"""Whether a merge is better than others beyond chance, for `result.json`, report and terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from evox_evogm.command.scores import ByExample, ScoreRow, known_examples, label
from evox_evogm.command.statistics import (
    LEVEL,
    Difference,
    Regression,
    dev_test_regression,
    examples_to_tell_apart,
    paired_difference,
    reliability,
)
from evox_evogm.problems.lora_merge import LoRAMergeProblem

RIVALS = ("average", "RegMean", "trained")  # kinds of rows that a merge is compared with


@dataclass(frozen=True)
class HistoryScores:
    """The dev scores by example of the different merges that a search evaluated whole.

    :param by_task: an `(H, S)` tensor of each task.
    """

    by_task: Mapping[str, torch.Tensor]

    @property
    def merges(self) -> int:
        """H."""
        for table in self.by_task.values():
            return len(table)
        return 0

    @property
    def examples(self) -> int:
        """S over all tasks."""
        return sum(table.shape[1] for table in self.by_task.values())

    def means(self) -> torch.Tensor:
        """`(H,)` mean scores over tasks."""
        return torch.stack([table.mean(1) for table in self.by_task.values()]).mean(0)

    def of_merge(self, row: int) -> ByExample:
        """The scores of one merge."""
        return {name: table[row].tolist() for name, table in self.by_task.items()}


def history_scores(problem: LoRAMergeProblem, records: Sequence[dict]) -> HistoryScores:
    """The scores of a history, from the cache of the problem.

    Failed and pruned merges are left out, and so are merges that the cache does not have.

    :param records: the history.
    """
    points = dict.fromkeys(tuple(record["coefficients"]) for record in records)
    rows: dict[str, list[Sequence[float]]] = {task.name: [] for task in problem.tasks}
    for point in points:
        found = known_examples(problem, torch.tensor(point))
        if found.keys() != rows.keys():
            continue
        for name, scores in found.items():
            rows[name].append(scores)
    for table in rows.values():
        if len({len(values) for values in table}) != 1:  # none, or not of the same examples
            return HistoryScores({})
    return HistoryScores({name: torch.tensor(scores) for name, scores in rows.items()})


def describe_significance(rows: Sequence[ScoreRow], history: HistoryScores) -> dict:
    """What `result.json` says under `statistics`.

    :param rows: of the final table, the merge last.
    :param history: the merges that the search evaluated.
    :return: with None for what is not known
        - `gains`: the lead of the merge over the expert that is best on dev, the average, and other
          rows, in both splits;
        - `best_two`: the lead of the best merge of the history over the next one, and how many dev
          examples would tell them apart; None if there are none that differ;
        - `reliability`: see `statistics.reliability`, and over how many `merges`;
        - `regression`: of test scores on dev scores over the rows; None if there is none.
    """
    merges = [row for row in rows if row.kind != "trained"]  # which has learnt the dev answers
    dev = [mean(row.dev) for row in merges]
    test = [mean(row.test) for row in merges]
    line = dev_test_regression(dev, test)
    share = reliability(history.by_task)
    return {
        "gains": gains_of_merge(rows),
        "best_two": compare_best_two(history),
        "reliability": None if share is None else known(share),
        "merges": history.merges,
        "regression": None if line is None else as_table(line),
    }


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


def gains_of_merge(rows: Sequence[ScoreRow]) -> list[dict]:
    """The lead of the last row, the merge, over the rows that it should be ahead of."""
    merge = rows[-1]
    if merge.kind != "merge":
        return []
    rivals = [row for row in rows if row.kind in RIVALS]
    expert = best_expert_on_dev(rows)
    if expert is not None:
        rivals.insert(0, expert)
    gains = []
    for rival in rivals:
        gain: dict = {"over": label(rival.kind, rival.name), "kind": rival.kind}
        for split in ("dev", "test"):
            ours, theirs = merge.examples.get(split, {}), rival.examples.get(split, {})
            gain[split] = as_table(paired_difference(ours, theirs))
        gains.append(gain)
    return gains


def best_expert_on_dev(rows: Sequence[ScoreRow]) -> ScoreRow | None:
    """The expert with the best mean dev score, which is known before any test score."""
    best, best_score = None, -math.inf
    for row in rows:
        score = mean(row.dev)
        if row.kind == "expert" and score > best_score:  # NaN is not
            best, best_score = row, score
    return best


def compare_best_two(history: HistoryScores) -> dict | None:
    """The lead of the best merge over the next one that scores differently in some example."""
    if history.merges < 2:
        return None
    order = history.means().argsort(descending=True, stable=True).tolist()
    best = history.of_merge(order[0])
    for row in order[1:]:
        next_best = history.of_merge(row)
        if next_best != best:
            found = paired_difference(best, next_best)
            needed = examples_to_tell_apart(found, history.examples)
            return {**as_table(found), "examples": history.examples, "needed": needed}
    return None


def remarks_on_chance(result: dict) -> list[str]:
    """What the statistics of a run say of its merge: the sentences for report and terminal.

    :param result: what `result.json` holds; older ones have no statistics.
    """
    found = result.get("statistics")
    if not found:
        return []
    remarks = []
    for gain in found["gains"]:
        remarks += _remark_on_gain(gain)
    if found["best_two"]:
        remarks.append(_remark_on_best_two(found["best_two"]))
    return remarks


def _remark_on_gain(gain: dict) -> list[str]:
    """The lead of the merge over one row on test, and whether it is beyond chance."""
    test = as_difference(gain["test"])
    if not math.isfinite(test.difference):
        return []
    rival = gain["over"]
    if gain["kind"] == "expert":
        rival = f"{rival}, the expert that is best on dev"
    elif gain["kind"] == "average":
        rival = "the average"
    if test.difference == 0:
        return [f"On test it is level with {rival}."]
    where = "above" if test.difference > 0 else "below"
    lead = f"On test it is {short(abs(test.difference))}"
    if math.isnan(test.p):
        return [f"{lead} {where} {rival}; the examples do not say whether that is chance."]
    verdict = "beyond chance" if test.p < LEVEL else "this may be chance"
    return [f"{lead} ± {short(test.se)} {where} {rival}: {verdict} ({p_value(test.p)})."]


def _remark_on_best_two(found: dict) -> str:
    """How far the two best merges are apart, and how many examples would decide."""
    difference, se, p = as_difference(found)
    apart = f"The two best merges of the search are {short(difference)}"
    on = f"on {found['examples']:,} dev examples"
    if math.isnan(se):
        return f"{apart} apart {on}."
    apart = f"{apart} ± {short(se)} apart {on}"
    if p < LEVEL:
        return f"{apart}: beyond chance ({p_value(p)})."
    if found["needed"] is None:
        return f"{apart}: no number of examples is known to tell them apart."
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
            gain_by_split = f"{short(dev)} on dev and {signed(test)} on test"
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
        rise = f"{signed(line['slope'] / 10)} ± {short(line['se'] / 10)}"
        over = f"Over the {line['rows']} models of the table"
        remarks.append(f"{over}, a dev score higher by .1 goes with a test score {rise} higher.")
    return remarks


def short(number: float) -> str:
    """A number with three decimals, without the 0 before the point."""
    return f"{number:.3f}".replace("0.", ".", 1) if abs(number) < 1 else f"{number:.3f}"


def signed(number: float) -> str:
    """The same, with - before a number that is shown below 0."""
    text = short(abs(number))
    return f"-{text}" if number < 0 and text != ".000" else text


def p_value(p: float) -> str:
    """A p value as it is written in a text."""
    return "p < .001" if p < 0.001 else f"p = {short(p)}"


def round_up(number: int) -> int:
    """A number with two digits that count."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
