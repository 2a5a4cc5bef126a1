"""Pictures of the coefficients: a bar for each expert, or a map of experts and groups."""

from itertools import groupby
from os.path import commonprefix

import torch
from markupsafe import Markup

from evox_evogm.command.html_report.formats import signed
from evox_evogm.command.html_report.run_data import RunData
from evox_evogm.command.html_report.score_charts import RowAxes
from evox_evogm.command.html_report.svg import (
    LINE,
    WIDTH,
    Figure,
    element,
    line,
    picture,
    shorten,
    text,
)
from evox_evogm.command.scores import label
from evox_evogm.problems.adapters.groups import without_channel

EDGE = 0.02  # of the width of the box, within which a coefficient stands at its edge
LEVELS = 6  # of colour to each side of 0


def at_edge(run: RunData) -> torch.Tensor:
    """`(n, g)`, whether a coefficient stands at the edge of the box, or beyond it."""
    if run.box is None:
        return torch.zeros(run.best.shape, dtype=torch.bool)
    lower, upper = (bound[:, None] for bound in run.box)  # (n, 1) each
    margin = EDGE * (upper - lower)
    return run.used & ((run.best <= lower + margin) | (run.best >= upper - margin))


def coefficients(run: RunData) -> Figure:
    """The coefficients: a map with several groups, else bars."""
    return heat_map(run) if run.n_groups > 1 else bars(run)


def edge_sentence(run: RunData) -> str:
    """How many coefficients stand at the edge of the box, named before, and what that means."""
    count, total = int(at_edge(run).sum()), int(run.used.sum())
    if not count:
        return "No coefficient stands at its edge."
    one = count == 1
    of = "" if total == count else f" of {total}"
    return (
        f"{count}{of} {'coefficient stands' if one else 'coefficients stand'} at its edge: better "
        "ones may lie beyond."
    )


def bars(run: RunData) -> Figure:
    """A bar for each expert over the box, with a mark where it stands at the edge."""
    names = [label("expert", name) for name in run.experts]
    values = run.best[:, 0].tolist()
    least, most = min(*values, 0.0), max(*values, 0.0)
    if run.box is not None:
        lower, upper = run.box
        least, most = min(float(lower.min()), least), max(float(upper.max()), most)
    margin = 0.04 * (most - least)
    axes = RowAxes(names, (least - margin, most + margin), "coefficient")
    edges = at_edge(run)[:, 0].tolist()
    for row, value in enumerate(values):
        height = axes.y(row)
        if run.box is not None:
            track = (axes.x(float(lower[row])), height, axes.x(float(upper[row])), height)
            axes.parts.append(line(*track, "track"))
        style = "bar" if value >= 0 else "bar-below"
        axes.parts.append(line(axes.x(0.0), height, axes.x(value), height, style))
        if edges[row]:
            axes.parts.append(_bracket(axes.x(value), height))
        axes.value(row, signed(value))
    axes.parts.append(line(axes.x(0.0), 4, axes.x(0.0), axes.bottom, "axis"))
    caption = "The search has no box."
    if run.box is not None:
        caption = f"Grey is the box that was searched. {edge_sentence(run)}"
    if any(edges):
        caption += " They are marked by an orange bar."
    title = "Coefficients of the experts"
    svg = axes.picture("coefficients", title, caption)
    return Figure("coefficients", title, svg, caption)


def _bracket(x: float, y: float) -> Markup:
    return line(x, y - 9, x, y + 9, "edge")


def heat_map(run: RunData) -> Figure:
    """A cell for each expert and group; dots in cells at the edge of the box.

    Channels of a module have one cell, with their mean.
    """
    by_group = run.result["coefficients_by_group"]
    names, row_of_group = rows_of_groups(list(next(iter(by_group.values()))))
    groups = without_common_beginning(names)
    n, g = len(run.best), len(groups)
    empty = torch.zeros(n, g, dtype=torch.float64)
    counts = empty.index_add(1, row_of_group, run.used.double())
    values = empty.index_add(1, row_of_group, run.best) / counts.clamp_min(1)  # (n, g)
    left, top = 120.0, 24.0
    width = (WIDTH - left - 4) / n
    height = max(3.0, min(22.0, 640.0 / g))
    largest = float(values.abs().max()) or 1.0
    cells = _cells((values / largest * LEVELS).round().int().T.tolist())
    parts: list[Markup] = []
    # One unit a cell: short data, and a stroke as high as the cell.
    place = f"translate({left:.1f} {top + height / 2:.1f}) scale({width:.3f} {height:.3f})"
    paths = [element("path", d=data, class_=style) for style, data in sorted(cells.items())]
    parts.append(element("g", *paths, transform=place, stroke_width=1))
    bottom = top + height * g
    corners = f"M{left:.1f} {top:.1f}H{WIDTH - 4}V{bottom:.1f}H{left:.1f}Z"
    parts.append(element("path", d=corners, class_="frame"))
    edges = empty.index_add(1, row_of_group, at_edge(run).double()) > 0
    parts += _edge_dots(edges, left, top, width, height)
    every = max(1, round(18 / width))
    for column in range(0, n, every):
        middle = left + width * (column + 0.5)
        parts.append(text(middle, top - 6, str(column + 1), "t", anchor="middle"))
    step = max(1, -(-g * LINE // int(max(LINE, height * g))))
    for row in range(0, g, step):
        middle = top + height * (row + 0.5) + 4
        parts.append(text(left - 6, middle, shorten(groups[row], 18), "t small", anchor="end"))
    parts += _legend(bottom + 22, largest, left)
    caption = (
        "A column for each expert, numbered as in the table below, and a row for each group of "
        "modules. Blue is above 0, purple below, as strong as the size."
    )
    if g < len(row_of_group):
        caption += " A cell is the mean over the channels of a module."
    if run.box is not None:
        caption += f" The box that was searched goes from {_ends(run.box)}. {edge_sentence(run)}"
    if edges.any():
        caption += " Cells with one have a dot."
    title = "Coefficients by expert and group of modules"
    svg = picture("coefficients", title, caption, bottom + 46, parts)
    return Figure("coefficients", title, svg, caption)


def rows_of_groups(groups: list[str]) -> tuple[list[str], torch.Tensor]:
    """The names of the rows of a map, and a `(g,)` tensor of the row that each group is in.

    :param groups: the names of all g groups.
    """
    rows: dict[str, int] = {}
    places = []
    for group in groups:
        places.append(rows.setdefault(without_channel(group), len(rows)))
    return list(rows), torch.tensor(places)


def without_common_beginning(names: list[str]) -> list[str]:
    """Names without the parts between dots that all of them begin with."""
    beginning = commonprefix(names)
    length = beginning.rfind(".") + 1
    return [name[length:] for name in names] if len(names) > 1 else names


def _cells(levels: list[list[int]]) -> dict[str, str]:
    """The cells of each colour as the data of a path, one unit a cell; equal neighbours are one.

    :param levels: of colour, from the top; 0 has none.
    """
    cells: dict[str, str] = {}
    for row, line_of_levels in enumerate(levels):
        column = 0
        for level, equal in groupby(line_of_levels):
            width = len(list(equal))
            if level:
                cells[_style(level)] = cells.get(_style(level), "") + f"M{column} {row}h{width}"
            column += width
    return cells


def _style(level: int) -> str:
    return f"{'p' if level > 0 else 'n'}{abs(level)}"


def _ends(box: tuple[torch.Tensor, torch.Tensor]) -> str:
    lower, upper = box
    return f"{signed(float(lower.min()))} to {signed(float(upper.max()))}"


def _edge_dots(
    edges: torch.Tensor, left: float, top: float, width: float, height: float
) -> list[Markup]:
    data = ""
    for column, row in edges.nonzero().tolist():
        data += f"M{left + width * (column + 0.5):.0f} {top + height * (row + 0.5):.0f}h0"
    if not data:
        return []
    size = round(min(5.0, height * 0.6, width * 0.6), 1)
    return [element("path", d=data, class_="dots edge-dot", stroke_width=size)]


def _legend(top: float, largest: float, left: float) -> list[Markup]:
    """Blocks of all colours, with the numbers that the ends stand for."""
    parts = []
    width = 14.0
    x = left + 50
    parts.append(text(x - 6, top + 5, signed(-largest), anchor="end"))
    for level in range(-LEVELS, LEVELS + 1):
        if level:
            data = f"M{x:.1f} {top:.1f}h{width}"
            parts.append(element("path", d=data, class_=_style(level), stroke_width=12))
        x += width
    parts.append(text(x + 6, top + 5, signed(largest)))
    return parts
