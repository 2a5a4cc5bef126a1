"""A picture of a search for a terminal of any size: what `LiveDisplay` shows."""

import math
from collections.abc import Callable, Mapping

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.text import Text

from evox_evogm.monitoring.counted import counted
from evox_evogm.monitoring.display.facts import RunFacts
from evox_evogm.monitoring.display.sparkline import bar, mean, sparkline
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.monitoring.progress import Progress

# Cyan and orange are told apart whatever colours an eye sees.
POSITIVE, NEGATIVE, QUIET = "cyan", "dark_orange", "dim"
LONGEST_NAME = 22
BAR = 8  # characters
FINDINGS = 3  # lines


def panel(progress: Progress | None, facts: RunFacts, console: Console) -> RenderableType:
    """The state of a search, in at most the width and the height of a console.

    :param progress: after the last evaluation; None before the first.
    """
    width, height = console.size
    width = max(20, width)
    findings = _findings(facts, width)
    if progress is None:
        return Group(Text("the first evaluations ...", QUIET), *findings)
    lines = [*_head(progress, width), *_scores(progress, width)]
    record = progress.best_record
    if record is None:
        return Group(*lines, *findings)
    which = "last" if progress.window else "best"
    tasks = record.get("tasks") or {}
    coefficients = facts.by_expert(record["coefficients"])
    left = max(6, height - len(lines) - len(findings) - 4)
    rows = -(-len(tasks) // _columns(tasks, width))
    for_tasks = max(2, min(rows, left // 2))
    if tasks:  # functions of an EvoX problem have none
        lines.append(_title(f"scores of the {which} by task ({len(tasks)})", width))
        lines += _cells(tasks, width, for_tasks, _score_cell, lambda score: score)
    what = "mean coefficients" if facts.groups > 1 else "coefficients"
    whose = f"{what} of the {which} by expert" if facts.experts else f"coordinates of the {which}"
    lines.append(_title(f"{whose} ({len(coefficients)})", width))
    lines += _cells(coefficients, width, left - for_tasks, _coefficient_cell, lambda c: -abs(c))
    return Group(*lines, *findings)


def _head(progress: Progress, width: int) -> list[Text]:
    """How far the search is: on one line, or on two where a line is too short."""
    digits = ".0f" if progress.speed >= 100 else ".3g"
    speed = f"{progress.speed:{digits}} a minute, {progress.time_left}"
    words = [f" {progress.evaluations}, {speed}"]
    if cell_len(words[0]) + 8 > width:
        words = [f" {progress.evaluations}", speed]
    room = max(0, min(24, width - cell_len(words[0])))
    filled = bar(progress.share, room)
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(filled, POSITIVE)
    line.append("·" * (room - len(filled)), QUIET)
    line.append(words[0])
    return [line, *[Text(more, no_wrap=True, overflow="ellipsis") for more in words[1:]]]


def _scores(progress: Progress, width: int) -> list[Text]:
    """Best and mean score with their course."""
    scores = [score for score in progress.scores if math.isfinite(score)]
    if not scores:
        return [Text("no evaluation has a score yet")]
    best_so_far: list[float] = []
    for score in scores:
        best_so_far.append(max(score, best_so_far[-1]) if best_so_far else score)
    number = (progress.best_record or {}).get("evaluation")
    of = "" if number is None else f" (evaluation {number + 1})"
    best = f"best {_number(progress.shown(progress.best))}{progress.best_error} "
    average = f"mean {_number(progress.shown(mean(scores)))} "
    room = max(4, min(40, width - cell_len(best) - cell_len(of)))
    lines = []
    shown = [(best, best_so_far, max, of), (average, scores, mean, "")]
    if progress.window:  # scores on minibatches cannot be compared
        words = f"mean of the last {progress.window} {_number(progress.shown(progress.best))} "
        shown = [(words, scores, mean, "")]
    for words, values, take, end in shown:
        line = Text(words, no_wrap=True, overflow="ellipsis")
        line.append(sparkline(values, room, take), POSITIVE)
        lines.append(line.append(end, QUIET))
    return lines


def _title(words: str, width: int) -> Text:
    line = Text(f"{words} ", no_wrap=True, overflow="ellipsis", style=QUIET)
    return line.append("─" * max(0, width - cell_len(words) - 1))


def _name_width(values: Mapping[str, float]) -> int:
    longest = max((cell_len(sanitize(name)) for name in values), default=1)
    return min(LONGEST_NAME, longest)


def _cell_width(values: Mapping[str, float]) -> int:
    return _name_width(values) + len(" -0.000 ") + BAR


def _columns(values: Mapping[str, float], width: int) -> int:
    return max(1, (width + 2) // (_cell_width(values) + 2))


def _cells(
    values: Mapping[str, float],
    width: int,
    rows: int,
    cell: Callable[[float, float], Text],
    order: Callable[[float], float],
) -> list[Text]:
    """Values by name in columns; where rows are too few, those that come first in an order.

    :param rows: the most lines.
    :param cell: the number and the bar of a value, out of it and the largest size.
    :param order: the place of a value: lower is earlier.
    """
    names = list(values)
    columns = _columns(values, width)
    room = rows * columns
    left_out: list[str] = []
    if len(names) > room:
        room = max(1, (rows - 1) * columns)
        names = sorted(names, key=lambda name: order(values[name]))
        left_out = names[room:]
        names = names[:room]
    name_width = min(_name_width(values), max(6, width - len(" -0.000 ") - BAR))
    largest = max((abs(value) for value in values.values() if math.isfinite(value)), default=0.0)
    lines = []
    per_column = -(-len(names) // columns)
    for row in range(per_column):
        line = Text(no_wrap=True, overflow="crop")
        for name in names[row::per_column]:
            if line:
                line.append("  ")
            line.append(_shortened(sanitize(name), name_width))
            line.append_text(cell(values[name], largest))
        lines.append(line)
    if left_out:
        sizes = [values[name] for name in left_out]
        between = f"from {_number(min(sizes))} to {_number(max(sizes))}"
        lines.append(Text(f"and {len(left_out)} more, {between}", QUIET))
    return lines


def _shortened(name: str, width: int) -> str:
    """A name in so many cells, without its middle where it is too long."""
    if cell_len(name) > width:
        head = set_cell_size(name, width // 2)
        tail = ""
        for character in reversed(name):
            if cell_len(f"{head}…{character}{tail}") > width:
                break
            tail = character + tail
        name = f"{head}…{tail}"
    return set_cell_size(name, width)


def _score_cell(value: float, largest: float) -> Text:
    share = value if 0 <= value <= 1 else 0.0  # log-probabilities have no bar
    return _number_and_bar(f"{_number(value):>7}", share, POSITIVE)


def _coefficient_cell(value: float, largest: float) -> Text:
    share = abs(value) / largest if largest else 0.0
    return _number_and_bar(f"{value:>+7.3f}", share, POSITIVE if value >= 0 else NEGATIVE)


def _number_and_bar(number: str, share: float, style: str) -> Text:
    text = Text(f"{number} ")
    return text.append(bar(share, BAR).ljust(BAR), style)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "none"


def _findings(facts: RunFacts, width: int) -> list[Text]:
    """What was found out about base, tasks and experts, in a few lines."""
    lines = []
    for note in facts.findings[:FINDINGS]:
        line = Text(f"note: {sanitize(note)}", style=QUIET, no_wrap=True, overflow="ellipsis")
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    if len(facts.findings) > FINDINGS:
        more = counted(len(facts.findings) - FINDINGS, "more note")
        lines.append(Text(f"and {more}", QUIET))
    return lines
