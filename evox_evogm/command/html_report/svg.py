"""Parts of SVG pictures: elements with escaped texts, and axes with linear scales.

Pictures have no colours of their own but classes, which `chart.css.j2` gives colours for light and
dark pages. They are 380 units wide, so that their texts can be read on a telephone.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from evox_evogm.monitoring.escaping import sanitize

WIDTH = 380
LINE = 15  # from one line of text to the next
MANY = 150  # evaluated merges, whose dots are smaller


class Figure(NamedTuple):
    """A picture of the report."""

    name: str
    """Of its file, without an ending."""
    title: str
    svg: Markup
    caption: str = ""
    table: Sequence[Sequence[str]] = ()
    """What it shows as a table, the header first."""


def element(tag: str, *children: str, **attributes) -> Markup:
    """An SVG element.

    :param children: texts, which are escaped unless they are `Markup`.
    :param attributes: `class_` for class, an underscore for a hyphen. None leaves one out.
    """
    words = [tag]
    for name, value in attributes.items():
        if value is not None:
            name = name.rstrip("_").replace("_", "-")
            words.append(f'{name}="{escape(number(value))}"')
    inner = Markup("").join(escape(child) for child in children)
    opening = " ".join(words)
    return Markup(f"<{opening}>{inner}</{tag}>" if children else f"<{opening}/>")


def number(value) -> str:
    """An attribute as text; a float with at most one decimal."""
    if not isinstance(value, float):
        return str(value)
    shown = f"{value:.1f}".removesuffix(".0")
    return "0" if shown == "-0" else shown


def text(x: float, y: float, words: str, class_: str = "t", anchor: str | None = None) -> Markup:
    """A text at a place.

    :param anchor: middle or end; by default it begins there.
    """
    return element("text", sanitize(words), x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """A line through points."""
    steps: list[str] = []
    for x, y in points:
        steps.append(f"{'L' if steps else 'M'}{number(x)} {number(y)}")
    return element("path", d="".join(steps), class_=class_)


def dots(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """Round dots, in one element: a class gives their size as the width of a stroke."""
    data = "".join(f"M{number(x)} {number(y)}h0" for x, y in points)
    return element("path", d=data, class_=f"dots {class_}")


def evaluated_style(count: int) -> str:
    """The class of the dots of so many evaluated merges."""
    return "evaluated" if count > MANY else "evaluated few"


def shorten(name: str, letters: int) -> str:
    """A name of at most so many letters; of a long one the middle is left out."""
    name = sanitize(name)
    if len(name) <= letters:
        return name
    head = (letters - 1) // 2
    return f"{name[:head]}…{name[len(name) - (letters - 1 - head) :]}"


def picture(
    name: str, title: str, description: str, height: float, parts: Iterable[Markup]
) -> Markup:
    """A whole picture, with a title and a description for those who cannot see it.

    :param name: of the picture, different for each on a page.
    :param title: what it shows.
    :param description: what can be seen in it.
    :param height: in units, of which it is `WIDTH` wide.
    """
    body = Markup("\n").join(parts)
    return element(
        "svg",
        element("title", sanitize(title), id=f"{name}-title"),
        element("desc", sanitize(description), id=f"{name}-desc"),
        body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {number(float(height))}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="chart",
    )


def ticks(lower: float, upper: float, most: int = 6) -> list[float]:
    """Round numbers inside a range, at equal distances."""
    size = (upper - lower) / most
    unit = 10.0 ** math.floor(math.log10(size))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= size * (1 - 1e-9))
    first = math.ceil(lower / step - 1e-9)
    last = math.floor(upper / step + 1e-9)
    return [step * place for place in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """A number of an axis, with the decimals that its distance from the next one needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2
    shown = f"{value:.{decimals}f}"
    return shown.lstrip("-") if float(shown) == 0 else shown.replace("-", "\N{MINUS SIGN}")


def padded(values: Iterable[float], share: float = 0.06) -> tuple[float, float]:
    """The range of some finite numbers with a margin; never empty."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    lower, upper = min(known), max(known)
    margin = (upper - lower) * share or max(abs(upper) * share, 0.05)
    return lower - margin, upper + margin


class Axes:
    """A frame with two linear scales.

    :param x: the least and the largest number of the horizontal scale.
    :param y: those of the vertical scale.
    :param xlabel: what the horizontal scale measures.
    :param ylabel: what the vertical scale measures.
    :param height: of the picture.
    :param left: of the frame, from the left edge.
    :param whole: whether the horizontal scale counts.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        xlabel: str,
        ylabel: str,
        height: float = 270,
        left: float = 44,
        whole: bool = False,
    ):
        self.x_range, self.y_range = x, y
        self.left, self.right = left, WIDTH - 10.0
        self.top, self.bottom = 24.0, height - 40.0
        self.height = height
        self.parts: list[Markup] = []
        self._draw_scales(xlabel, ylabel, whole)

    def x(self, value: float) -> float:
        """Where a number lies on the horizontal scale."""
        lower, upper = self.x_range
        return self.left + (value - lower) / (upper - lower) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Where a number lies on the vertical scale."""
        lower, upper = self.y_range
        return self.bottom - (value - lower) / (upper - lower) * (self.bottom - self.top)

    def add(self, *parts: Markup) -> None:
        """Draw on top of what is there."""
        self.parts += parts

    def add_diagonal(self, style: str) -> None:
        """Draw the line on which both numbers are the same, where the frame has a part of it."""
        lower = max(self.x_range[0], self.y_range[0])
        upper = min(self.x_range[1], self.y_range[1])
        if lower < upper:
            self.add(line(self.x(lower), self.y(lower), self.x(upper), self.y(upper), style))

    def picture(self, name: str, title: str, description: str) -> Markup:
        """The whole picture, see `picture`."""
        return picture(name, title, description, self.height, self.parts)

    def _draw_scales(self, xlabel: str, ylabel: str, whole: bool) -> None:
        y_ticks, x_ticks = ticks(*self.y_range), ticks(*self.x_range)
        if whole:
            x_ticks = [value for value in x_ticks if value == round(value)]
        for value in y_ticks:
            label = tick_label(value, _step(y_ticks))
            self.add(line(self.left, self.y(value), self.right, self.y(value), "grid"))
            self.add(text(self.left - 5, self.y(value) + 4, label, anchor="end"))
        for value in x_ticks:
            label = tick_label(value, _step(x_ticks))
            self.add(line(self.x(value), self.bottom, self.x(value), self.bottom + 4, "axis"))
            self.add(text(self.x(value), self.bottom + LINE + 2, label, anchor="middle"))
        self.add(line(self.left, self.bottom, self.right, self.bottom, "axis"))
        middle = (self.left + self.right) / 2
        self.add(text(middle, self.height - 5, xlabel, anchor="middle"))
        self.add(text(2, 13, ylabel))


def _step(values: Sequence[float]) -> float:
    return values[1] - values[0] if len(values) > 1 else abs(values[0]) if values else 1.0


def spread_labels(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights of labels near where they should be, one below the other.

    :param heights: where each label should be, from the top.
    :param top: where the first label may be at the highest.
    :param bottom: where the last label may be at the lowest.
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = [0.0] * len(heights)
    above = top - LINE
    for index in order:
        placed[index] = above = max(heights[index], above + LINE)
    below = bottom + LINE
    for index in reversed(order):
        placed[index] = below = min(placed[index], below - LINE)
    return placed
