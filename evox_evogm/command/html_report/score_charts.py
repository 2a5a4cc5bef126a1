"""Pictures of scores: of every model, dev against test, and what each expert gives."""

import math
from collections.abc import Sequence

from evox_evogm.command.html_report.formats import percent, short, signed
from evox_evogm.command.html_report.landscape import Interpolation
from evox_evogm.command.html_report.run_data import Row, RunData, Score
from evox_evogm.command.html_report.svg import (
    LINE,
    WIDTH,
    Axes,
    Figure,
    dots,
    element,
    evaluated_style,
    line,
    padded,
    picture,
    shorten,
    spread_labels,
    text,
    tick_label,
    ticks,
)
from evox_evogm.command.scores import label
from evox_evogm.command.uncertainty import standard_error_of_mean

CONFIDENCE = 1.96  # standard errors to each side of a score that hold 95 %
MOST_EXPERTS = 12  # that are shown beside base, average and merge
ROW = 24.0  # height of a row
NAMES = 128.0  # width of their column
LETTERS = 20
STYLES = {"base": "base-dot", "expert": "expert-dot", "merge": "merge-dot"}


def shown_rows(run: RunData) -> list[Row]:
    """The rows of the base, of at most `MOST_EXPERTS` experts, best first, and of the merges."""
    experts = [row for row in run.rows if row.kind == "expert"]
    experts.sort(key=lambda row: -_or(row.mean("dev").value, -math.inf))
    before = [row for row in run.rows if row.kind == "base"]
    after = [row for row in run.rows if row.kind not in ("base", "expert")]
    return before + experts[:MOST_EXPERTS] + after


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value


def style_of(row: Row) -> str:
    """The class of a row's dot."""
    return STYLES.get(row.kind, "average-dot")


class RowAxes:
    """Rows with names, and one horizontal scale.

    :param names: of the rows, from the top.
    :param range_: the least and the largest number of the scale.
    :param xlabel: what the scale measures.
    """

    def __init__(self, names: Sequence[str], range_: tuple[float, float], xlabel: str):
        self.left, self.right, self.range = NAMES + 8, WIDTH - 44.0, range_
        self.bottom = 8 + ROW * len(names)
        self.height = self.bottom + 38
        self.parts = []
        values = ticks(*range_, 4)
        step = values[1] - values[0] if len(values) > 1 else 0.0
        for value in values:
            self.parts.append(line(self.x(value), 4, self.x(value), self.bottom, "grid"))
            place = self.bottom + LINE
            label = tick_label(value, step)
            self.parts.append(text(self.x(value), place, label, anchor="middle"))
        middle = (self.left + self.right) / 2
        self.parts.append(text(middle, self.height - 5, xlabel, anchor="middle"))
        for row, name in enumerate(names):
            words = shorten(name, LETTERS)
            self.parts.append(text(NAMES, self.y(row) + 4, words, "name", anchor="end"))

    def x(self, value: float) -> float:
        """Where a number lies."""
        lower, upper = self.range
        return self.left + (value - lower) / (upper - lower) * (self.right - self.left)

    def y(self, row: int) -> float:
        """The middle of a row."""
        return 8 + ROW * (row + 0.5)

    def value(self, row: int, words: str) -> None:
        """Write a number at the end of a row."""
        self.parts.append(text(WIDTH - 2, self.y(row) + 4, words, anchor="end"))

    def whisker(self, row: int, value: float, error: float) -> None:
        """Draw a line from the lower to the upper end of a 95 % interval."""
        if math.isfinite(error):
            reach = CONFIDENCE * error
            lower, upper = self.x(value - reach), self.x(value + reach)
            self.parts.append(line(lower, self.y(row), upper, self.y(row), "whisker"))

    def picture(self, name: str, title: str, description: str):
        """The whole picture."""
        return picture(name, title, description, self.height, self.parts)


def interval(score: Score) -> list[float]:
    """The ends of a 95 % interval, or the score where its error is unknown."""
    reach = CONFIDENCE * score.error if math.isfinite(score.error) else 0.0
    return [score.value - reach, score.value + reach]


def scores_of_models(run: RunData) -> Figure | None:
    """The mean test score of base, experts and merges, with 95 % intervals."""
    rows = [row for row in shown_rows(run) if not math.isnan(row.mean("test").value)]
    if not rows:
        return None
    ends: list[float] = []
    for row in rows:
        ends += interval(row.mean("test"))
    axes = RowAxes([row.name for row in rows], padded(ends), "test score, mean over tasks")
    for number, row in enumerate(rows):
        score = row.mean("test")
        axes.whisker(number, score.value, score.error)
        axes.parts.append(dots([(axes.x(score.value), axes.y(number))], style_of(row)))
        axes.value(number, short(score.value))
    caption = "Mean test scores over tasks. Lines are 95 % intervals over the choice of examples."
    if any(math.isnan(row.mean("test").error) for row in rows):
        caption += " Where one is missing, its standard error is not known."
    left_out = sum(row.kind == "expert" for row in run.rows) - MOST_EXPERTS
    if left_out > 0:
        caption += f" {left_out} experts that are lower on dev are left out."
    title = "Test scores of all models"
    return Figure("scores", title, axes.picture("scores", title, caption), caption)


def dev_against_test(run: RunData) -> Figure | None:
    """Mean dev and test scores of every model that has both."""
    rows = []
    for row in run.rows:
        if not math.isnan(row.mean("dev").value + row.mean("test").value):
            rows.append(row)
    if len(rows) < 2:
        return None
    points = run.data.get("test_points", {}).get("points", [])  # of the history
    dev = [row.mean("dev").value for row in rows] + [point["dev"] for point in points]
    test = [row.mean("test").value for row in rows] + [point["test"] for point in points]
    axes = Axes(padded(dev, 0.12), padded(test, 0.12), xlabel="dev score", ylabel="test score")
    axes.add_diagonal("zero")
    places = [(axes.x(point["dev"]), axes.y(point["test"])) for point in points]
    if places:
        axes.add(dots(places, "evaluated"))
    for row in rows:
        place = (axes.x(row.mean("dev").value), axes.y(row.mean("test").value))
        name = element("title", row.name)
        axes.add(element("g", name, dots([place], style_of(row))))
    _name_dots(axes, [run.row_of("base"), run.best_expert, run.row_of("average"), run.merge], rows)
    caption = (
        "A dot for each model: base grey, experts blue, average and RegMean green, the merge "
        "orange. Below the dashed line, a model is worse on test than on dev."
    )
    if points:
        caption += (
            f" Small dots: {len(points)} merges that the search evaluated, evenly over the order "
            "of their dev scores. They were scored on test when the merge was chosen."
        )
    title = "Dev against test"
    return Figure("dev_and_test", title, axes.picture("dev_and_test", title, caption), caption)


def _name_dots(axes: Axes, named: Sequence[Row | None], rows: Sequence[Row]) -> None:
    """Write names beside dots, one below the other where they are near."""
    found = [row for row in named if row is not None and row in rows]
    heights = [axes.y(row.mean("test").value) + 4 for row in found]
    placed = spread_labels(heights, axes.top + 4, axes.bottom - 4)
    for row, height in zip(found, placed, strict=True):
        x = axes.x(row.mean("dev").value)
        ends_right = x > (axes.left + axes.right) / 2
        place, anchor = (x - 9, "end") if ends_right else (x + 9, None)
        style = "strong" if row.kind == "merge" else "name"
        axes.add(text(place, height, shorten(row.name, LETTERS), style, anchor))


def held_out_predictions(fit: Interpolation | None) -> Figure | None:
    """The observed dev score of every evaluated merge against what the others predict for it."""
    if fit is None:
        return None
    predicted, observed = fit.held_out.tolist(), fit.scores.tolist()
    axes = Axes(
        padded(predicted),
        padded(observed),
        xlabel="predicted from all other merges",
        ylabel="observed dev score",
    )
    axes.add_diagonal("zero")
    places = []
    for prediction, score in zip(predicted, observed, strict=True):
        places.append((axes.x(prediction), axes.y(score)))
    axes.add(dots(places, evaluated_style(len(places))))
    caption = (
        "Most evaluations have no test score. Instead, each merge's dev score is shown against "
        "what a Gaussian process fitted to all other merges predicts for it. The predictions "
        f"explain {percent(fit.explained)} of the variance; the rest is chance, or finer than "
        "the evaluations show."
    )
    title = "Dev score and held-out prediction of every merge"
    return Figure("held_out", title, axes.picture("held_out", title, caption), caption)


def contributions(run: RunData) -> Figure | None:
    """What the mean dev score of the merge loses without each expert."""
    data = run.data.get("contributions")
    if not data or "failure" in data:
        return None
    names, losses = [], []
    for name in run.experts:
        names.append(label("expert", name))
        losses.append(loss_without(data, name))
    known = [loss for loss in losses if not math.isnan(loss.value)]
    if not known:
        return None
    ends = [0.0]
    for loss in known:
        ends += interval(loss)
    axes = RowAxes(names, padded(ends), "dev score with the expert, less without it")
    axes.parts.append(line(axes.x(0), 4, axes.x(0), axes.bottom, "axis"))
    for number, loss in enumerate(losses):
        if math.isnan(loss.value):
            axes.value(number, "failed")
            continue
        style = "bar" if loss.value >= 0 else "bar-below"
        height = axes.y(number)
        axes.parts.append(line(axes.x(0), height, axes.x(loss.value), height, style))
        axes.whisker(number, loss.value, loss.error)
        axes.value(number, signed(loss.value))
    caption = (
        f"The merge was evaluated {len(names)} more times on dev, each time with the coefficient "
        "of one expert at 0 and all others as they are. Right of 0, the merge is better with the "
        "expert. Lines are 95 % intervals of the paired differences."
    )
    title = "What each expert gives to the merge"
    return Figure("contributions", title, axes.picture("contributions", title, caption), caption)


def loss_without(data: dict, name: str) -> Score:
    """What the mean over tasks loses without an expert; NaN if that could not be scored."""
    found = data["without"].get(name)
    if found is None:
        return Score(math.nan, math.nan)
    losses = []
    for task, score in data["merge"].items():
        losses.append(float(score) - float(found["scores"][task]))
    errors = {task: float(error) for task, error in found["errors"].items()}
    return Score(sum(losses) / len(losses), standard_error_of_mean(errors))
