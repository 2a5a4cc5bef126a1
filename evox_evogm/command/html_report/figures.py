"""All figures of a run, their colours, and their files."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from markupsafe import Markup

from evox_evogm.command.html_report.coefficient_charts import coefficients
from evox_evogm.command.html_report.front_chart import front
from evox_evogm.command.html_report.landscape import interpolate, slice_through
from evox_evogm.command.html_report.landscape_chart import landscape
from evox_evogm.command.html_report.progress_charts import (
    best_so_far,
    scores_on_minibatches,
    spread_of_points,
    spread_of_scores,
)
from evox_evogm.command.html_report.run_data import RunData
from evox_evogm.command.html_report.score_charts import (
    contributions,
    dev_against_test,
    held_out_predictions,
    scores_of_models,
)
from evox_evogm.command.html_report.svg import Figure
from evox_evogm.command.html_report.templates import environment
from evox_evogm.resume.atomic_write import atomic_write

log = logging.getLogger(__name__)

FOLDER = "figures"
# The colours of M. Okabe and K. Ito, "Color Universal Design" (2008), lighter on dark pages, which
# readers with any kind of colour vision can tell apart.
LIGHT = MappingProxyType(
    {
        "paper": "#ffffff",
        "ink": "#1d2329",
        "muted": "#59636d",
        "line": "#d9dde1",
        "merge": "#d55e00",
        "expert": "#0072b2",
        "average": "#009e73",
        "below": "#aa4499",
    }
)
DARK = MappingProxyType(
    {
        "paper": "#14181c",
        "ink": "#e8eaed",
        "muted": "#a6afb8",
        "line": "#3b434b",
        "merge": "#f58a3c",
        "expert": "#56b4e9",
        "average": "#35c79c",
        "below": "#d98cc4",
    }
)
# Nine colours of cividis (J. R. Nuñez et al., PLOS ONE 2018), dark to light in the same steps for
# all kinds of colour vision.
CIVIDIS = (
    "#00224e",
    "#1a386f",
    "#434e6c",
    "#61656f",
    "#7d7c78",
    "#9b9476",
    "#bcae6c",
    "#dec958",
    "#fee838",
)
NO_PNG = (
    "The figures are SVG files in figures/. For PNG files too: pip install cairosvg, which is the "
    "extra figures, and evogm report again."
)
NO_CAIRO = "The figures are SVG files in figures/. PNG files need the library cairo of the system."
PNG_WIDTH = 1260  # pixels, three times that of the picture


def figures_of(run: RunData) -> dict[str, Figure]:
    """The figures that a run has the data for, by name."""
    fit = interpolate(run.points, run.observed) if len(run.records) else None
    plane = None
    if fit is not None:
        plane = slice_through(fit.points, fit.scores, run.best.flatten())
    found = [
        scores_of_models(run),
        best_so_far(run),
        scores_on_minibatches(run),
        spread_of_scores(run),
        spread_of_points(run),
        coefficients(run),
        contributions(run),
        landscape(run, fit, plane),
        dev_against_test(run),
        held_out_predictions(fit),
        front(run),
    ]
    return {figure.name: figure for figure in found if figure is not None}


def chart_css(colours: Mapping[str, str], *, halo: bool = True) -> Markup:
    """The style of figures.

    :param colours: by name, as `LIGHT`.
    :param halo: whether texts stand out from lines behind them.
    """
    template = environment().get_template("chart.css.j2")
    return Markup(template.render(c=colours, cividis=CIVIDIS, halo=halo))


def page_css() -> Markup:
    """The style of figures on the page, which has the colours as variables."""
    return chart_css({name: f"var(--{name})" for name in LIGHT})


def svg_file(figure: Figure, *, dark: bool = True) -> str:
    """A figure as a file of its own, legible on light and dark pages.

    :param dark: whether it has colours for dark pages too, and whatever else browsers know.
    """
    style = chart_css(LIGHT, halo=dark)
    if dark:
        style += Markup("@media (prefers-color-scheme:dark){{{}}}").format(chart_css(DARK))
    opening, rest = figure.svg.split(">", 1)
    return f"{opening}><style>{style}</style>{rest}\n"


def write_figures(figures: Sequence[Figure], out: Path) -> str:
    """Write every figure as SVG, and as PNG where cairosvg is installed.

    :param out: the run folder.
    :return: a sentence about what was written.
    """
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    for figure in figures:
        atomic_write(folder / f"{figure.name}.svg", svg_file(figure).encode())
    try:
        import cairosvg
    except ImportError:
        return NO_PNG
    except OSError:  # cairosvg is there, and does not find its library
        return NO_CAIRO
    for figure in figures:
        path = folder / f"{figure.name}.png"
        # cairosvg knows no colour schemes.
        text = svg_file(figure, dark=False)
        png = cairosvg.svg2png(text.encode(), output_width=PNG_WIDTH, background_color="white")
        atomic_write(path, png)
    return "The figures are SVG and PNG files in figures/."
