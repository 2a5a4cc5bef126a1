"""The guide to budgets: its commands run, and its figures are those of the pages that it names."""

import math
import re

import pytest
from builders import change_settings, history
from guides import ROOT, blocks, run_shell

GUIDE = ROOT / "evox_evogm" / "command" / "BUDGET.md"
TEXT = GUIDE.read_text()
LINK = re.compile(r"\]\((\.\./\.\./benchmarks/results/\w+\.md)\)")


def figures(text):
    """The numbers with a decimal point in a text, without a leading 0."""
    return {number.lstrip("0") for number in re.findall(r"(?<![\d.])0?\.\d+", text)}


def rows_with_pages():
    """Each row of the measured table with the page that it is from."""
    page = None
    for line in TEXT.splitlines():
        if line.startswith("| ") and (LINK.search(line) or line.endswith("| the same |")):
            page = LINK.search(line)[1] if LINK.search(line) else page
            yield line, page


def test_every_figure_of_a_row_stands_on_its_page():
    rows = list(rows_with_pages())
    assert len(rows) == 8
    for line, page in rows:
        on_page = figures((GUIDE.parent / page).read_text())
        assert figures(line) and figures(line) <= on_page, line


def test_what_stopping_saves_stands_on_its_page():
    (sentence,) = re.findall(r"`stop: auto` ended after.*?\)\)", TEXT, flags=re.DOTALL)
    page = (GUIDE.parent / LINK.search(sentence)[1]).read_text()
    evaluations, lost = re.search(
        r"after (\d+) of 160 .* lost ([.\d]+)", sentence, re.DOTALL
    ).groups()
    assert re.search(rf"ends after {evaluations} of 160 evaluations for {lost} of test", page)


def test_the_standard_errors_are_those_of_half_right_answers():
    for error, examples in re.findall(r"(\.\d\d) for (\d+)", TEXT):
        assert float(error) == pytest.approx(math.sqrt(0.25 / int(examples)), abs=5e-3)


def test_what_is_recommended_is_what_init_writes():
    from evox_evogm.algorithms.stopping import WINDOW
    from evox_evogm.command.init_settings import BUDGET

    assert f"`budget: {BUDGET}`, as `evogm init` writes it" in TEXT
    assert f"It never ends before {2 * WINDOW}." in TEXT


@pytest.mark.lengthy
def test_a_run_goes_on_from_a_time_to_a_number(project, monkeypatch):
    monkeypatch.chdir(project)
    change_settings(project, budget=5)
    check, timed, longer = blocks(GUIDE, "bash")[0].strip().splitlines()
    out = project / "runs" / "run"
    assert run_shell(check) == [0] and not out.exists()
    assert run_shell(timed.replace("20min", "0.2s")) == [0]
    first = history(out)
    assert run_shell(longer.replace("160", str(len(first) + 8))) == [0]
    records = history(out)
    assert records[: len(first)] == first and len(first) < len(records) <= len(first) + 8
