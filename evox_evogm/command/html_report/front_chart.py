"""A picture of the front: the merges that no other beats in every dev task."""

from markupsafe import Markup

from evox_evogm.command.html_report.run_data import RunData
from evox_evogm.command.html_report.svg import (
    WIDTH,
    Axes,
    Figure,
    dots,
    element,
    line,
    padded,
    path,
    picture,
    shorten,
    text,
)

MOST_LINES = 60  # merges of the front that are drawn over many tasks
TITLE = "The front"
HEIGHT = 270.0


def front(run: RunData) -> Figure | None:
    """The dev scores of the front: over two tasks as points, over more as lines."""
    found = run.result.get("front")
    if not found or len(run.tasks) < 2:
        return None
    return _points(run, found) if len(run.tasks) == 2 else _lines(run, found)


def _points(run: RunData, found: list[dict]) -> Figure:
    """Points over two tasks, with all evaluated merges."""
    first, second = run.tasks
    others = []
    for record in run.records:
        if record["score"] is not None:
            others.append((record["tasks"][first], record["tasks"][second]))
    members = sorted((float(entry["dev"][first]), float(entry["dev"][second])) for entry in found)
    axes = Axes(
        padded([x for x, _ in [*others, *members]]),
        padded([y for _, y in [*others, *members]]),
        xlabel=f"dev, {shorten(first, 30)}",
        ylabel=f"dev, {shorten(second, 30)}",
    )
    axes.add(dots([(axes.x(x), axes.y(y)) for x, y in others], "evaluated"))
    axes.add(path([(axes.x(x), axes.y(y)) for x, y in members], "expert-line"))
    axes.add(dots([(axes.x(x), axes.y(y)) for x, y in members], "expert-dot"))
    for entry in found:
        if entry["exported"]:
            place = (axes.x(float(entry["dev"][first])), axes.y(float(entry["dev"][second])))
            axes.add(dots([place], "merge-dot"))
    caption = (
        f"Blue are the {len(found)} merges that no other beats in both dev tasks, grey all "
        "evaluated merges, orange the exported one."
    )
    return Figure("front", TITLE, axes.picture("front", TITLE, caption), caption)


def _lines(run: RunData, found: list[dict]) -> Figure:
    """A line for each merge over all tasks, each task with a scale of its own."""
    left, right, top, bottom = 24.0, WIDTH - 24.0, 26.0, HEIGHT - 44
    step = (right - left) / (len(run.tasks) - 1)
    ranges = {}
    parts: list[Markup] = []
    for number, task in enumerate(run.tasks):
        ranges[task] = padded([float(entry["dev"][task]) for entry in found])
        x = left + step * number
        parts.append(line(x, top, x, bottom, "grid"))
        parts.append(text(x, bottom + 15, str(number + 1), anchor="middle"))
    for entry in sorted(found[:MOST_LINES], key=lambda entry: entry["exported"]):
        points = []
        for number, task in enumerate(run.tasks):
            lower, upper = ranges[task]
            share = (float(entry["dev"][task]) - lower) / (upper - lower)
            points.append((left + step * number, bottom - share * (bottom - top)))
        parts.append(path(points, "merge-line" if entry["exported"] else "range"))
    parts.append(text(left, 14, "dev score, each task from its lowest to its highest"))
    parts.append(element("path", d=f"M{left} {bottom}H{right}", class_="axis"))
    numbered = ", ".join(f"{number + 1} {task}" for number, task in enumerate(run.tasks))
    shown = f"{min(len(found), MOST_LINES)} of " if len(found) > MOST_LINES else ""
    caption = (
        f"A line for each of {shown}{len(found)} merges that no other beats in every dev task; "
        f"orange is the exported one. Tasks: {numbered}."
    )
    svg = picture("front", TITLE, caption, HEIGHT, parts)
    return Figure("front", TITLE, svg, caption)
