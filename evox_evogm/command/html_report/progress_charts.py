"""Pictures of how the search went: the best score so far, and the population of every step."""

import math
from statistics import median, quantiles

import torch
from markupsafe import Markup

from evox_evogm.command.best_expert import listed
from evox_evogm.command.html_report.formats import short
from evox_evogm.command.html_report.run_data import RunData
from evox_evogm.command.html_report.svg import (
    Axes,
    Figure,
    dots,
    element,
    evaluated_style,
    line,
    padded,
    path,
    spread_labels,
    text,
)
from evox_evogm.monitoring.progress import WINDOW
from evox_evogm.resume.journaled_problem import RECOMMENDED

LOW = 0.1  # the share of the lowest scores that may lie below the picture
LETTERS = 24  # of a label


def best_so_far(run: RunData) -> Figure | None:
    """The best observed score after each evaluation, and every score."""
    known = ~run.observed.isnan()
    if not known.any():
        return None
    cost = run.costs.cumsum(0)
    filled = run.observed.nan_to_num(-math.inf)
    best = filled.cummax(0).values
    references = reference_scores(run)
    lowest = float(run.observed[known].quantile(LOW))
    first_best = float(best[known][0])
    shown = [lowest, first_best, float(best[-1])]
    shown += [value for _, _, value in references if value > lowest]
    lower, upper = padded(shown, 0.08)
    axes = Axes(
        (0.0, float(cost[-1])),
        (lower, upper),
        xlabel="evaluations" if _each_costs_one(run) else "evaluations' worth",
        whole=True,
        ylabel=score_label(run),
    )
    points, below = [], []
    for row in known.nonzero()[:, 0].tolist():
        place = (axes.x(float(cost[row])), axes.y(float(run.observed[row])))
        if run.observed[row] < lower:
            below.append((place[0], axes.bottom - 3))
        else:
            points.append(place)
    axes.add(dots(points, evaluated_style(len(points))), arrows_down(below))
    axes.add(path(_steps(axes, cost, best), "merge-line"))
    draw_references(axes, references)
    end = short(float(best[-1]))
    height = axes.y(float(best[-1])) - 7
    axes.add(text(axes.right, height, f"best {end}", "strong", anchor="end"))
    when = int((filled == best[-1]).nonzero()[0, 0])
    reached = f"The best, {end}, was reached by evaluation {when + 1} of {len(run.records)}."
    caption = f"Dots are evaluated merges, the line is the best of them so far. {reached}"
    if below:
        caption += (
            f" Arrows: {len(below)} lower scores, down to {float(run.observed[known].min()):.3f}."
        )
    title = "Best dev score so far"
    return Figure("best_so_far", title, axes.picture("best_so_far", title, caption), caption)


def scores_on_minibatches(run: RunData) -> Figure | None:
    """The score of every evaluation on its own minibatch, and the mean of the last ones."""
    scores, costs = [], []
    for record, cost in zip(run.records, run.costs.cumsum(0).tolist(), strict=True):
        if "places" in record and record["score"] is not None:
            scores.append(record["score"])
            costs.append(cost)
    if len(scores) < 2:
        return None
    means = []
    for number in range(1, len(scores) + 1):
        last = scores[max(0, number - WINDOW) : number]
        means.append(sum(last) / len(last))
    axes = Axes(
        (0.0, costs[-1]),
        padded(scores, 0.08),
        xlabel="evaluations' worth",
        whole=True,
        ylabel=score_label(run),
    )
    places = [(axes.x(cost), axes.y(score)) for cost, score in zip(costs, scores, strict=True)]
    axes.add(dots(places, evaluated_style(len(places))))
    line_through = [(axes.x(cost), axes.y(mean)) for cost, mean in zip(costs, means, strict=True)]
    axes.add(path(line_through, "merge-line"))
    draw_references(axes, reference_scores(run))
    caption = (
        "Dots are evaluated merges, each on a part of the dev examples, which differ in difficulty."
        f" The line is the mean of the last {WINDOW}. What is recommended is an average of the "
        "points that they lie around, and the table has its score on all dev examples."
    )
    title = "Scores on minibatches"
    svg = axes.picture("scores_on_minibatches", title, caption)
    return Figure("scores_on_minibatches", title, svg, caption)


def _each_costs_one(run: RunData) -> bool:
    return bool((run.costs == 1).all())


def score_label(run: RunData) -> str:
    """What the score of an evaluation is."""
    if is_mean(run):
        return "dev score, mean over tasks"
    return f"dev score, objective {_objective(run)} of the settings"


def is_mean(run: RunData) -> bool:
    """Whether the score of an evaluation is the mean over tasks, as in the table."""
    is_weighted = run.result.get("weights") or run.result.get("constraints")
    return _objective(run) in ("mean", "pareto") and not is_weighted


def _objective(run: RunData) -> str:
    return run.result.get("objective") or "mean"


def reference_scores(run: RunData) -> list[tuple[str, str, float]]:
    """What a merge is to be ahead of: name, class of the line, and mean dev score."""
    found = []
    if not is_mean(run):
        return []
    for row, style in ((run.best_expert, "expert"), (run.row_of("average"), "average")):
        if row is not None and not math.isnan(row.mean("dev").value):
            name = row.name
            if style == "expert":
                level = [found.name for found in run.best_experts]
                name = f"best expert{'s' if len(level) > 1 else ''}, {listed(level)}"
            found.append((name, style, row.mean("dev").value))
    return found


def draw_references(axes: Axes, references: list[tuple[str, str, float]]) -> None:
    """Lines at scores, with their names above them at the right."""
    inside = [entry for entry in references if axes.y_range[0] < entry[2] < axes.y_range[1]]
    heights = [axes.y(value) + 14 for _, _, value in inside]
    placed = spread_labels(heights, axes.top + 14, axes.bottom - 4)
    for (name, style, value), height in zip(inside, placed, strict=True):
        axes.add(line(axes.left, axes.y(value), axes.right, axes.y(value), f"{style}-line"))
        shown = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
        axes.add(text(axes.right, height, f"{shown} {short(value)}", "name", anchor="end"))


def arrows_down(places: list[tuple[float, float]]) -> Markup:
    """Small arrows for what lies below the picture."""
    data = "".join(f"M{x - 3:.1f} {y - 5:.1f}l3 5l3 -5" for x, y in places)
    return element("path", d=data, class_="axis") if places else Markup("")


def _steps(axes: Axes, cost: torch.Tensor, best: torch.Tensor) -> list[tuple[float, float]]:
    """The corners of a line that rises where the best score does."""
    corners: list[tuple[float, float]] = []
    height = None
    for row, value in enumerate(best.tolist()):
        if math.isinf(value) or value == height:
            continue
        x = axes.x(float(cost[row]))
        if height is not None:
            corners.append((x, axes.y(height)))
        corners.append((x, axes.y(value)))
        height = value
    if height is not None:
        corners.append((axes.right, axes.y(height)))
    return corners


def by_step(run: RunData) -> list[list[int]]:
    """The numbers of the evaluations of every step; those outside of steps belong to none."""
    steps: dict[int, list[int]] = {}
    for row, record in enumerate(run.records):
        if RECOMMENDED in record:
            continue
        steps.setdefault(int(record["step"]), []).append(row)
    return list(steps.values())


def spread_of_scores(run: RunData) -> Figure | None:
    """The scores of the population of every step: from lowest to highest, quartiles, median."""
    steps = []
    for number, rows in enumerate(by_step(run)):
        scores = [float(run.observed[row]) for row in rows]
        known = [score for score in scores if not math.isnan(score)]
        if known:
            steps.append((number, sorted(known)))
    if len(steps) < 2 or median(len(scores) for _, scores in steps) < 2:
        return None
    every = torch.tensor([score for _, scores in steps for score in scores])
    medians = [median(scores) for _, scores in steps]
    lower, upper = padded([float(every.quantile(LOW)), min(medians), float(every.max())])
    x_range = (-0.5, steps[-1][0] + 0.5)
    axes = Axes(x_range, (lower, upper), xlabel="step", ylabel=score_label(run), whole=True)
    ranges, boxes, middles = "", "", []
    for number, scores in steps:
        x = axes.x(number)
        bottom = min(axes.bottom, axes.y(scores[0]))
        ranges += f"M{x:.1f} {bottom:.1f}V{axes.y(scores[-1]):.1f}"
        if len(scores) >= 4:
            first, _, third = quantiles(scores, method="inclusive")
            boxes += f"M{x:.1f} {min(axes.bottom, axes.y(first)):.1f}V{axes.y(third):.1f}"
        middles.append((x, axes.y(median(scores))))
    axes.add(element("path", d=ranges, class_="range"))
    if boxes:
        axes.add(element("path", d=boxes, class_="quartiles"))
    axes.add(dots(middles, "merge-dot" if len(steps) < 40 else "merge-small"))
    size = max(len(scores) for _, scores in steps)
    quarter = " thick the middle half," if boxes else ""
    caption = (
        f"Each step evaluated up to {size} merges. Thin lines go from the lowest to the highest "
        f"score,{quarter} dots are medians."
    )
    title = "Spread of scores in the population, by step"
    return Figure("spread", title, axes.picture("spread", title, caption), caption)


def spread_of_points(run: RunData) -> Figure | None:
    """How far the merges of a step lie from each other, or with one merge, from the last step's."""
    steps = by_step(run)
    alone = median(len(rows) for rows in steps) < 2
    sizes = []
    for number, rows in enumerate(steps):
        points = run.points[rows]
        if alone and number:
            sizes.append((number, float((points[0] - run.points[steps[number - 1]][0]).norm())))
        elif len(rows) > 1:
            sizes.append((number, float((points - points.mean(0)).norm(dim=1).mean())))
    if len(sizes) < 2:
        return None
    _, upper = padded([size for _, size in sizes])
    what = "distance from the step before" if alone else "mean distance from their centre"
    x_range = (0, sizes[-1][0])
    axes = Axes(x_range, (0.0, upper), xlabel="step", ylabel=what, whole=True)
    axes.add(path([(axes.x(number), axes.y(size)) for number, size in sizes], "merge-line"))
    each = "each merge lies from the one before" if alone else "the merges of a step lie apart"
    caption = f"How far {each}, in units of coefficients. Small means that the search has settled."
    title = "How widely the search still tries"
    return Figure("exploration", title, axes.picture("exploration", title, caption), caption)
