"""The page: what the template shows of a run."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evox_evogm.command.confirm import confirm_cells, remarks_on_confirm
from evox_evogm.command.experts import count_given, whose_coefficients
from evox_evogm.command.glossary import glossary
from evox_evogm.command.html_report.examples_shown import shown_examples
from evox_evogm.command.html_report.figures import (
    DARK,
    LIGHT,
    figures_of,
    page_css,
    write_figures,
)
from evox_evogm.command.html_report.formats import with_minus
from evox_evogm.command.html_report.run_data import RunData, read_run
from evox_evogm.command.html_report.svg import Figure
from evox_evogm.command.html_report.tables import (
    coefficient_table,
    every_row_table,
    has_all_errors,
    main_tables,
    worth_of,
)
from evox_evogm.command.html_report.templates import environment
from evox_evogm.command.html_report.verdict import is_it_chance, what_came_out
from evox_evogm.command.objective_remarks import front_cells, remarks_on_objective
from evox_evogm.command.report import what_was_merged
from evox_evogm.command.score_table import remarks_on_merge
from evox_evogm.command.significance import further_remarks, remarks_on_chance
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.resume.atomic_write import atomic_write

log = logging.getLogger(__name__)

REPORT = "report.html"


def report_html(run_folder) -> str:
    """The report of a finished run as one page without anything from elsewhere.

    :param run_folder: the folder of the run.
    :raises ValueError: if a file of the run is missing or damaged.
    """
    run = read_run(Path(run_folder))
    return render_page(run, figures_of(run))


def write_report(run_folder) -> Path:
    """Write `report.html`, and the figures in `figures/`.

    :param run_folder: the folder of the run.
    :return: the page.
    :raises ValueError: if a file of the run is missing or damaged.
    """
    out = Path(run_folder)
    run = read_run(out)
    figures = figures_of(run)
    note = write_figures(list(figures.values()), out)
    atomic_write(out / REPORT, render_page(run, figures, note).encode())
    return out / REPORT


def write_page(run_folder) -> None:
    """Write the report of a run that is finished whatever happens here.

    :param run_folder: the folder of the run.
    """
    try:
        write_report(run_folder)
    except Exception as error:
        reason = f"{type(error).__name__}: {sanitize(str(error))}"
        log.warning("%s could not be written: %s", REPORT, reason)


def render_page(run: RunData, figures: Mapping[str, Figure], figures_note: str = "") -> str:
    """The page.

    :param figures: by name.
    :param figures_note: a sentence about the files of the figures.
    """
    named = {"base": run.settings["base"]} if "base" in run.settings else {}
    values: dict[str, Any] = {
        "run": run,
        "result": run.result,
        "light": LIGHT,
        "dark": DARK,
        "chart_css": page_css(),
        "figures": figures,
        "figures_note": figures_note,
        "merged": what_was_merged({**named, **run.result}),
        "came_out": what_came_out(run),
        "chance": is_it_chance(run),
        "remarks": _remarks(run),
        "tables": main_tables(run),
        "every_row": every_row_table(run),
        "confirm": _with_minus(confirm_cells(run.result.get("confirm"))),
        "front": _with_minus(front_cells(run.result.get("front") or [])),
        "coefficients": coefficient_table(run),
        "worth": worth_of(run),
        "examples": shown_examples(run),
        "settings": yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True),
        "command": run.data.get("command"),
        "adapter_error": (run.result["adapter"] or {}).get("error"),
        "count_given": count_given(run.result),
        "whose_coefficients": whose_coefficients(
            run.result["regmean"], keep_experts=run.result["keep_experts"]
        ),
        "contributions_failure": (run.data.get("contributions") or {}).get("failure"),
        "has_all_errors": has_all_errors(run),
        "glossary": glossary(run.result),
    }
    return environment().get_template("report.html.j2").render(values)


def _remarks(run: RunData) -> list[str]:
    """What else a reader has to know about the scores."""
    result = run.result
    remarks = remarks_on_merge(result)
    remarks += remarks_on_confirm(result.get("confirm")) + remarks_on_objective(result)
    if result.get("statistics"):  # the first paragraph has the gains
        others = {**result["statistics"], "gains": []}
        remarks += remarks_on_chance({**result, "statistics": others})
    return [with_minus(remark) for remark in remarks + further_remarks(result)]


def _with_minus(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """A table with a minus sign before numbers, but in its header of names."""
    lines = [[with_minus(cell) for cell in line] for line in cells[1:]]
    return [*map(list, cells[:1]), *lines]
