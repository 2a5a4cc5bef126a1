"""`evogm report RUN`: make the reports of a finished run again."""

from pathlib import Path
from typing import Annotated

import typer

from evox_evogm.command.commands.attempt import attempt
from evox_evogm.command.commands.options import Debug
from evox_evogm.monitoring.escaping import sanitize


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)
    ],
    debug: Debug = False,
) -> None:
    """Make report.html, report.md and the figures of a finished run again, from its files."""

    def action() -> int:
        from evox_evogm.command.run_files import check_finished

        check_finished(run)
        print(sanitize(f"reading the run in {run} ..."), flush=True)
        from evox_evogm.command.make_reports import make_reports  # torch, which takes seconds

        make_reports(run)
        return 0

    attempt(action, debug)
