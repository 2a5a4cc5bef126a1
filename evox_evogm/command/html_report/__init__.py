"""The report of a finished run as one HTML page, and its figures as files beside it."""

from evox_evogm.command.html_report.page import report_html, write_page, write_report

__all__ = ["report_html", "write_page", "write_report"]
