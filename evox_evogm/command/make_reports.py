"""What `evogm report` does: the pages of a finished run, from its files alone."""

from pathlib import Path

from evox_evogm.command.html_report.page import write_report
from evox_evogm.command.report import report_markdown
from evox_evogm.command.result import read_result
from evox_evogm.command.run_files import check_finished
from evox_evogm.monitoring.display.heartbeat import Heartbeat
from evox_evogm.resume.atomic_write import atomic_write


def make_reports(run: Path) -> None:
    """Write `report.md`, `report.html` and the figures, and say where they are.

    :param run: the folder of a finished run.
    :raises ValueError: if the run is not finished, or a file of it is missing or damaged.
    """
    check_finished(run)
    atomic_write(run / "report.md", report_markdown(read_result(run)).encode())
    print("drawing the figures of the search and of its landscape ...", flush=True)
    with Heartbeat("drawing"):
        page = write_report(run)
    print(f"reports: {page} and {run / 'report.md'}")
