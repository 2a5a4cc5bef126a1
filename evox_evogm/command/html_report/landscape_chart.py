"""A picture of the scores around the merge, over the two directions in which good merges differ."""

import math
from itertools import groupby

import torch
from markupsafe import Markup

from evox_evogm.command.html_report.formats import percent, short, signed
from evox_evogm.command.html_report.landscape import Interpolation, Slice
from evox_evogm.command.html_report.progress_charts import score_label
from evox_evogm.command.html_report.run_data import RunData
from evox_evogm.command.html_report.svg import (
    Axes,
    Figure,
    dots,
    element,
    evaluated_style,
    padded,
    path,
    text,
)
from evox_evogm.command.scores import label

ACROSS, UP = 36, 28  # cells
COLOURS = 9
UNSURE = 0.7  # of the standard deviation far from all evaluations; paler beyond
NAMED = 3  # experts of a direction
NEAR = 0.5  # of the length scale: points so near to the slice are shown whole
PALE = "Hatched where it has little to go by."
INSIDE = 0.05  # the share of evaluated merges that may lie beyond each side of the picture


def landscape(run: RunData, fit: Interpolation | None, plane: Slice | None) -> Figure | None:
    """The interpolated dev score in a slice through the merge, with the evaluated merges.

    With one coefficient it is a curve.

    :param fit: to the history.
    :param plane: through the merge.
    """
    if fit is None or plane is None:
        return None
    if len(plane.axes) == 1:
        return _curve(run, fit, plane)
    places = plane.place(fit.points)
    merge = run.best.flatten()
    at_merge = plane.place(merge[None])[0]
    x_range, y_range = _range(places[:, 0], at_merge[0]), _range(places[:, 1], at_merge[1])
    axes = Axes(
        x_range,
        y_range,
        xlabel="first direction" if run.best.numel() > 2 else _coefficient_name(run, 0),
        ylabel="second direction" if run.best.numel() > 2 else _coefficient_name(run, 1),
        height=350,
    )
    lowest, highest = _draw_cells(axes, fit, plane)
    near: list[tuple[float, float]] = []
    far: list[tuple[float, float]] = []
    distance = plane.distance(fit.points)
    for (x, y), away in zip(places.tolist(), distance.tolist(), strict=True):
        if x_range[0] <= x <= x_range[1] and y_range[0] <= y <= y_range[1]:
            target = near if away <= NEAR * fit.length_scale else far
            target.append((axes.x(x), axes.y(y)))
    axes.add(dots(far, "far-rim"), dots(far, "tried-far"))
    axes.add(dots(near, "tried-rim"), dots(near, "tried-near"))
    x, y = axes.x(float(at_merge[0])), axes.y(float(at_merge[1]))
    axes.add(_star(x, y))
    _draw_legend(axes, lowest, highest)
    caption = _caption(run, fit, plane, len(near), len(far))
    title = "The landscape around the merge"
    return Figure("landscape", title, axes.picture("landscape", title, caption), caption)


def _range(places: torch.Tensor, merge: torch.Tensor) -> tuple[float, float]:
    """From where to where the picture goes: most of the evaluated merges, and the merge."""
    ends = places.quantile(torch.tensor([INSIDE, 1 - INSIDE], dtype=places.dtype)).tolist()
    return padded([*ends, float(merge)], 0.12)


def _draw_cells(axes: Axes, fit: Interpolation, plane: Slice) -> tuple[float, float]:
    """Colour the slice by the interpolated score; the lowest and the highest colour's score."""
    xs = torch.linspace(*axes.x_range, ACROSS + 1, dtype=torch.float64)
    ys = torch.linspace(*axes.y_range, UP + 1, dtype=torch.float64)
    middles = torch.cartesian_prod((xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2)
    scores, doubt = fit.predict(plane.point(middles))
    lowest, highest = float(scores.min()), float(scores.max())
    share = (scores - lowest) / max(highest - lowest, 1e-12)
    levels = (share * COLOURS).long().clamp(max=COLOURS - 1).reshape(ACROSS, UP).tolist()
    unsure = (doubt > UNSURE).reshape(ACROSS, UP).tolist()
    width = (axes.right - axes.left) / ACROSS
    height = (axes.bottom - axes.top) / UP
    cells: dict[str, str] = {}
    hatched = ""
    for column in range(ACROSS):
        left = axes.left + width * column
        for level, first, count in _runs(levels[column]):
            block = _block(left, axes.bottom - height * first, width, height * count)
            cells[f"v{level}"] = cells.get(f"v{level}", "") + block
        for is_unsure, first, count in _runs(unsure[column]):
            if is_unsure:
                hatched += _block(left, axes.bottom - height * first, width, height * count)
    for style, data in sorted(cells.items()):
        axes.add(element("path", d=data, class_=f"cell {style}"))
    if hatched:
        axes.add(_hatching(), element("path", d=hatched, class_="hatch"))
    return lowest, highest


def _runs(values: list) -> list[tuple]:
    """Equal neighbours of a list: their value, the place of the first, and how many they are."""
    found = []
    place = 0
    for value, equal in groupby(values):
        count = len(list(equal))
        found.append((value, place, count))
        place += count
    return found


def _block(left: float, bottom: float, width: float, height: float) -> str:
    return f"M{left:.1f} {bottom:.1f}h{width:.1f}v-{height:.1f}h-{width:.1f}z"


def _hatching() -> Markup:
    """The pattern of places where the interpolation has little to go by."""
    stroke = element("path", d="M0 6L6 0", class_="hatch-line")
    return element(
        "defs",
        element(
            "pattern",
            stroke,
            id="landscape-hatch",
            width=6,
            height=6,
            patternUnits="userSpaceOnUse",
        ),
    )


def _star(x: float, y: float) -> Markup:
    """A star for the merge."""
    corners = []
    for number in range(10):
        angle, radius = math.pi * number / 5, 9 if number % 2 == 0 else 4
        corners.append(f"{x + radius * math.sin(angle):.1f} {y - radius * math.cos(angle):.1f}")
    return element("path", d=f"M{'L'.join(corners)}Z", class_="point-best")


def _draw_legend(axes: Axes, lowest: float, highest: float) -> None:
    """The colours from lowest to highest, above the picture at the right."""
    width, x = 9.0, axes.right - 9.0 * COLOURS - 44
    axes.add(text(x - 5, 13, short(lowest), anchor="end"))
    for level in range(COLOURS):
        corner = f"M{x + width * level:.1f} 4h{width}v10h-{width}z"
        axes.add(element("path", d=corner, class_=f"cell v{level}"))
    axes.add(text(x + width * COLOURS + 5, 13, short(highest)))


def _caption(run: RunData, fit: Interpolation, plane: Slice, near: int, far: int) -> str:
    explained = f"{percent(fit.explained)} of the variance of merges that are held out"
    sentences = [
        "Colours are interpolated, not evaluated: a Gaussian process fitted to the "
        f"{score_label(run)}, of {len(fit.points)} merges, which explains {explained}.",
        PALE,
        "The star is the merge, white dots are evaluated merges.",
    ]
    if run.best.numel() > 2:
        sentences[-1] = (
            "The star is the merge. "
            f"White dots are {near} evaluated merges near this slice, small ones {far} far from it."
        )
        for number, name in enumerate(("first", "second")):
            sentences.append(f"The {name} direction is {_describe(run, plane.axes[number])}.")
        sentences.append(
            f"Both hold {percent(plane.share)} of how the better merges differ from it."
        )
    return " ".join(sentences)


def _describe(run: RunData, direction: torch.Tensor) -> str:
    """The experts that a direction is made of most."""
    table = direction.reshape(run.best.shape)  # (n, g)
    shares = table.square().sum(1)
    words = []
    for row in shares.argsort(descending=True)[:NAMED].tolist():
        name = label("expert", run.experts[row])
        if run.n_groups > 1:
            words.append(f"{name} ({percent(float(shares[row]))})")
        else:
            words.append(f"{signed(float(table[row, 0]))} {name}")
    rest = " and others" if len(shares) > NAMED else ""
    return f"{', '.join(words)}{rest}"


def _coefficient_name(run: RunData, number: int) -> str:
    """The name of one of at most two coefficients."""
    expert, group = divmod(number, run.n_groups)
    name = label("expert", run.experts[expert])
    if run.n_groups == 1:
        return f"coefficient of {name}"
    groups = list(next(iter(run.result["coefficients_by_group"].values())))
    return f"coefficient of {name}, {groups[group]}"


def _curve(run: RunData, fit: Interpolation, plane: Slice) -> Figure:
    """The interpolated score over the only coefficient."""
    values = fit.points[:, 0]
    x_range = padded([*values.tolist(), float(run.best[0, 0])])
    grid = torch.linspace(*x_range, 80, dtype=torch.float64)
    scores, _ = fit.predict(grid[:, None])
    y_range = padded([*scores.tolist(), *fit.scores.tolist()])
    axes = Axes(x_range, y_range, xlabel=_coefficient_name(run, 0), ylabel=score_label(run))
    curve = zip(grid.tolist(), scores.tolist(), strict=True)
    axes.add(path([(axes.x(x), axes.y(y)) for x, y in curve], "merge-line"))
    evaluated = zip(values.tolist(), fit.scores.tolist(), strict=True)
    axes.add(dots([(axes.x(x), axes.y(y)) for x, y in evaluated], evaluated_style(len(values))))
    expected = float(fit.predict(run.best[:1, :1])[0])
    axes.add(_star(axes.x(float(run.best[0, 0])), axes.y(expected)))
    caption = _caption(run, fit, plane, len(fit.points), 0).replace("Colours are", "The line is")
    caption = caption.replace(" Pale where it has little to go by.", "").replace(
        "white dots", "dots"
    )
    title = "The landscape around the merge"
    return Figure("landscape", title, axes.picture("landscape", title, caption), caption)
