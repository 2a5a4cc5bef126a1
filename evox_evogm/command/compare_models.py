"""What `evogm compare` does: two models on the same examples, with paired standard errors."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evox_evogm.command.number_format import with_error
from evox_evogm.command.result import EXAMPLES
from evox_evogm.command.run_folder import has_begun, read_table, saved_digests
from evox_evogm.command.significance import p_value
from evox_evogm.command.uncertainty import (
    LEVEL,
    Difference,
    paired_difference,
    single_scores,
    standard_error_of_mean,
    standard_errors,
)
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.adapters.read_adapter import CONFIG
from evox_evogm.resume.journal import from_json


@dataclass(frozen=True)
class Model:
    """A model and its scores by example.

    :param name: as it is shown.
    :param scores: by split and task.
    :param ids: of the examples, by split and task.
    :param digests: of the tasks by `NAME (SPLIT)`; empty where they are not known.
    """

    name: str
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    ids: Mapping[str, Mapping[str, Sequence[str]]]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Compared:
    """Two models in one task, or in the mean over tasks.

    :param task: its name.
    :param examples: how many both were scored on.
    :param first: the mean score of the first model.
    :param second: that of the second.
    :param lead: of the first over the second.
    :param errors: the standard error of each mean score; NaN if unknown.
    """

    task: str
    examples: int
    first: float
    second: float
    lead: Difference
    errors: tuple[float, float] = (math.nan, math.nan)


def needs_scoring(word: str) -> bool:
    """Whether a word names an adapter, which has no scores yet."""
    return (Path(word) / CONFIG).is_file()


def read_model(word: str) -> Model:
    """The model that a word names: a run, or a file of `evogm score`, and `:ROW` for another row.

    :param word: such as `runs/mine`, `runs/mine:average` or `scores.json:base`. Without a row it is
        the merge of a run, or the only row of a file.
    :raises ValueError: if there is no such run, file or row, or it has no scores by example.
    """
    place, row = word, None
    if not Path(word).exists():
        place, _, row = word.rpartition(":")
    path = Path(place)
    if path.is_dir() and has_begun(path):
        file, digests = path / EXAMPLES, saved_digests(path)
        if not file.is_file():
            expected = f"expected {EXAMPLES} in the folder of a finished run, found none in {path}"
            raise ValueError(f"compare: {expected}")
    elif path.is_file():
        file, digests = path, {}
    else:
        kinds = "expected a run folder, a file of evogm score or an adapter folder"
        raise ValueError(f"compare: {kinds}, with :ROW for another row, found {word!r}")
    table = read_table(file, json.loads)
    return _model(word, table, row, digests)


def _model(word: str, table: dict, row: str | None, digests: Mapping[str, str]) -> Model:
    try:
        rows, ids = table["rows"], table["examples"]
        named = [found for found in rows if row is None or found["name"] == row]
        if row is None and len(rows) > 1:
            named = [found for found in rows if found["kind"] == "merge"]
        if len(named) != 1:
            known = ", ".join(sanitize(found["name"]) for found in rows)
            which = "one merge; name a row" if row is None else f"a row {row!r}"
            raise ValueError(f"compare: expected {which} in {word}, found the rows {known}")
        scores = {}
        for split in ids:
            by_task = named[0][split].items()
            scores[split] = {name: from_json(list(values)) for name, values in by_task}
    except (KeyError, TypeError, AttributeError) as error:
        expected = f"expected scores by example in {word}, found them damaged"
        raise ValueError(f"compare: {expected}: {error}") from error
    tasks = {}
    for name, digest in digests.items():
        if name.startswith("task "):
            tasks[name.removeprefix("task ")] = digest
    shown = sanitize(word if row is not None else f"{word}:{named[0]['name']}")
    return Model(shown, scores, ids, tasks)


def compare(first: Model, second: Model, split: str) -> list[Compared]:
    """Compare two models by task, and in the mean over tasks, which is the last entry.

    Tasks that only one of them has are left out, and of the mean those with one score, if others
    have more.

    :raises ValueError: if they have no task in common, or other examples in one of them.
    """
    tasks = [name for name in first.scores.get(split, {}) if name in second.scores.get(split, {})]
    if not tasks:
        found = f"{list(first.scores.get(split, {}))} and {list(second.scores.get(split, {}))}"
        raise ValueError(f"compare: expected scores of a common task on {split}, found {found}")
    lines = []
    for name in tasks:
        _check_same_examples(first, second, split, name)
        lines.append(_compare(first, second, split, [name], name))
    left_out = single_scores({task: first.scores[split][task] for task in tasks})
    kept = [task for task in tasks if task not in left_out]
    without = f" without {', '.join(left_out)} (one score)" if left_out else ""
    return [*lines, _compare(first, second, split, kept, f"mean{without}")]


def _compare(first: Model, second: Model, split: str, tasks: Sequence[str], name: str) -> Compared:
    """Compare two models in the mean over some tasks.

    :param name: of the line.
    """
    ours = {task: first.scores[split][task] for task in tasks}
    theirs = {task: second.scores[split][task] for task in tasks}
    examples = sum(len(values) for values in ours.values())
    lead = paired_difference(ours, theirs)
    errors = _error_over_tasks(ours), _error_over_tasks(theirs)
    return Compared(name, examples, _mean_over_tasks(ours), _mean_over_tasks(theirs), lead, errors)


def _error_over_tasks(scores: Mapping[str, Sequence[float]]) -> float:
    return standard_error_of_mean(standard_errors(scores))


def _mean_over_tasks(scores: Mapping[str, Sequence[float]]) -> float:
    means = [sum(values) / len(values) for values in scores.values()]
    return sum(means) / len(means)


def _check_same_examples(first: Model, second: Model, split: str, task: str) -> None:
    key = f"{task} ({split})"
    digests = [model.digests[key] for model in (first, second) if key in model.digests]
    differ = len(set(digests)) > 1 or first.ids[split][task] != second.ids[split][task]
    if differ:
        expected = f"expected the same examples of task {task!r} on {split}"
        found = f"found others in {second.name} than in {first.name}"
        advice = "score one of them on the settings of the other, by evogm score"
        raise ValueError(f"compare: {expected}, {found}; {advice}")


def verdict(first: Model, second: Model, split: str, mean: Compared) -> str:
    """Which model is ahead in the mean over tasks, and whether that is beyond chance."""
    lead = mean.lead
    on = f"On {split}"
    if mean.task != "mean":
        on += f", in the {sanitize(mean.task)}"
    if not math.isfinite(lead.difference):
        return f"On {split} one of the two has no score."
    if lead.difference == 0:
        return f"{on} both have the same mean score."
    where = "above" if lead.difference > 0 else "below"
    words = f"{on}, {first.name} is {with_error(abs(lead.difference), lead.se)}"
    if math.isnan(lead.p):
        return f"{words} {where} {second.name}; the examples do not say whether that is chance."
    beyond = "beyond chance" if lead.p < LEVEL else "this may be chance"
    return f"{words} {where} {second.name}: {beyond} ({p_value(lead.p)})."


def print_comparison(lines: Sequence[Compared], console: Console) -> None:
    """Print a line per task: both scores and the paired difference, with their standard errors."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    number: Callable = table.add_column
    for name in ("examples", "first ± se", "second ± se", "difference ± se", "p"):
        number(name, justify="right")
    for line in lines:
        lead = line.lead
        p = p_value(lead.p).removeprefix("p = ").removeprefix("p ") if lead.p == lead.p else ""
        first, second = line.errors
        numbers = [with_error(line.first, first), with_error(line.second, second)]
        difference = with_error(lead.difference, lead.se)
        cells = [sanitize(line.task), str(line.examples), *numbers, difference, p]
        table.add_row(*[Text(cell) for cell in cells])
    console.print(table)
