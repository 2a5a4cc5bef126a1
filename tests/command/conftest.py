"""For tests of the command."""

import pytest


@pytest.fixture(autouse=True)
def reports_without_answers(request, monkeypatch):
    """Merges in tests ask no model for the report's sake, but where reports are what is tested."""
    if "report" in str(request.path.relative_to(request.config.rootpath)):
        return
    from evox_evogm.command import finished_run, report_data

    def collect(problem, tasks, best, rows, *, contributions, box=None):
        found = {"format": report_data.FORMAT, "command": report_data.command_line()}
        return {**found, "box": report_data.describe_box(problem, box)}

    monkeypatch.setattr(finished_run, "collect_report_data", collect)
    monkeypatch.setattr(finished_run, "wants_contributions", lambda setting, n_experts: False)
