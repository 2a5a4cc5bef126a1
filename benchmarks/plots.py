"""Plots as small SVG files, 800 pixels wide, that are legible on light and dark pages.

The background is transparent, text and axes are grey, and lines differ in dashes as well as in
colour. The colours are those of M. Okabe and K. Ito, "Color Universal Design" (2008), that stand
out from both black and white; the blue is a little lighter.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#D55E00", "#2080C0", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))
GREY = "#7A828A"  # nearly the same contrast on white and on black
WIDTH, HEIGHT = 800 / 96, 440 / 96  # inches of 96 pixels
LABEL_HEIGHT = 13  # points from one label to the next
MOST_BANDS = 7  # more of them hide each other
STYLE = {
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.labelcolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": GREY,
    "axes.titlesize": 11,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 11,
    "grid.alpha": 0.3,
    "grid.color": GREY,
    "savefig.transparent": True,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "evogm",  # the same file from the same data
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


@contextmanager
def svg_figure(path: Path, columns: int = 1) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """Inside the block, a figure with a row of axes; afterwards it is written.

    :param path: of the SVG.
    :param columns: axes side by side.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, columns, figsize=(WIDTH, HEIGHT), squeeze=False, layout="constrained"
        )
        try:
            for axis in axes[0]:
                axis.grid(axis="y")
                axis.set_axisbelow(True)
            yield figure, axes[0]
            write_svg(figure, path)
        finally:
            plt.close(figure)


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure with coordinates to a tenth of a point, which halves the file."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})

    def shorten(data: re.Match) -> str:
        return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.1f}", data[0])

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r'(?<= d=")[^"]*', shorten, text.getvalue()))


def line_style(index: int) -> dict:
    """The look of line `index`; the first is the thickest."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "linewidth": 2.5 if index == 0 else 1.5,
    }


def draw_curves(
    curves: Mapping[str, pd.DataFrame], path: Path, *, xlabel: str, ylabel: str, xscale="linear"
) -> None:
    """Lines with bands, each with its name at its end. Of many lines only the first has a band.

    :param curves: by name, the columns `lower`, `middle` and `upper`; the index is x.
    :param path: of the SVG.
    """
    with svg_figure(path) as (figure, (axis,)):
        for index, curve in enumerate(curves.values()):
            curve = without_level_parts(curve)
            style = line_style(index)
            axis.plot(curve.index, curve["middle"], **style)
            if index == 0 or len(curves) <= MOST_BANDS:
                axis.fill_between(
                    curve.index,
                    curve["lower"],
                    curve["upper"],
                    color=style["color"],
                    alpha=0.15,
                    linewidth=0,
                )
        axis.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale)
        axis.margins(x=0)
        label_ends(figure, axis, [curve["middle"] for curve in curves.values()], list(curves))


def without_level_parts(curve: pd.DataFrame) -> pd.DataFrame:
    """Leave out rows that are equal to the one before and the one after."""
    same = (curve == curve.shift()).all(axis=1)
    return curve[~(same & same.shift(-1, fill_value=False))]


def label_ends(
    figure: Figure, axis: Axes, lines: Sequence[pd.Series], names: Sequence[str]
) -> None:
    """Write names to the right of the axes at the heights where lines end, one below the other."""
    figure.canvas.draw()  # so that heights are those of the finished axes
    to_points = 72 / figure.dpi
    ends = []
    for index, line in enumerate(lines):
        _, height = axis.transData.transform((line.index[-1], line.iloc[-1]))
        ends.append((height * to_points, index))
    above = math.inf
    for height, index in sorted(ends, key=lambda end: -end[0]):
        place = min(height, above - LABEL_HEIGHT)
        above = place
        axis.annotate(
            names[index],
            xy=(lines[index].index[-1], lines[index].iloc[-1]),
            xytext=(8, place - height),
            textcoords="offset points",
            color=line_style(index)["color"],
            verticalalignment="center",
            annotation_clip=False,
        )


def draw_bars(
    values: pd.DataFrame,
    path: Path,
    *,
    xlabel: str,
    errors: pd.DataFrame | None = None,
    logarithmic: bool = False,
) -> None:
    """Horizontal bars, a group a row, the first row on top.

    :param values: a row a name, a column a kind of bar.
    :param path: of the SVG.
    :param errors: half lengths of error bars, as `values`.
    :param logarithmic: the scale of x.
    """
    with svg_figure(path) as (figure, (axis,)):
        figure.set_figheight(1 + 0.3 * len(values) * len(values.columns) ** 0.5)
        # Axes count from below, readers from above.
        values.iloc[::-1, ::-1].plot.barh(
            ax=axis,
            color=dict(zip(values.columns, COLOURS, strict=False)),
            width=0.75,
            logx=logarithmic,
            xerr=None if errors is None else errors.iloc[::-1, ::-1],
            error_kw={"ecolor": GREY, "elinewidth": 1},
            legend=False,
        )
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x")
        axis.set(xlabel=xlabel, ylabel="")
        if len(values.columns) > 1:
            figure.legend(
                loc="outside upper right", ncols=len(values.columns), frameon=False, reverse=True
            )


def draw_panels(
    panels: Mapping[str, pd.DataFrame], path: Path, *, ylabel: str, logarithmic: bool = False
) -> None:
    """Lines in axes side by side.

    :param panels: by the name of x; the index is x, a column a line.
    :param path: of the SVG.
    """
    with svg_figure(path, len(panels)) as (figure, axes):
        for axis, (xlabel, lines) in zip(axes, panels.items(), strict=True):
            for index, name in enumerate(lines.columns):
                label = name if axis is axes[0] else None
                axis.plot(lines.index, lines[name], marker="o", label=label, **line_style(index))
            axis.set(xlabel=xlabel)
            if logarithmic:
                axis.set(xscale="log", yscale="log")
        axes[0].set(ylabel=ylabel)
        figure.legend(loc="outside upper right", ncols=4, frameon=False)
