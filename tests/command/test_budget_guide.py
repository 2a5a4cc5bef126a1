"""The guide to budgets: its commands run, and its figures are those of the pages that it names."""

import math
import re

import pytest
from builders import change_settings, history
from guides import ROOT, blocks, run_shell

GUIDE = ROOT / "evox_evogm" / "command" / "BUDGET.md"
TEXT = GUIDE.read_text()
LINK = re.compile(r"\]\((\.\./\.\./benchmarks/results/\w+\.md)\)")


# Where the figures of a row stand on its page: how the first line in a table begins, and the
# column; or a pattern of a sentence.
OURS = "| SurrogateEvoGM |"
TEN, TEN_ALONE = f"{OURS} 20 | 0.321", "| SurrogateEvoGM scores | .414"
AFTER_40 = r"With 40 evaluations .* and (\S+) on test"
GRADIENTS = "| **GradientSearch by channel,"
PLACES = {
    "ten, dev": [(TEN, "dev at 40"), (TEN, "dev at 160")],
    "ten, test": [AFTER_40, (TEN, "test")],
    "twenty, dev": [(OURS, "dev at 40"), (OURS, "dev at 160")],
    "twenty, test": [AFTER_40, (OURS, "test")],
    "64, dev": [(OURS, "dev at 40"), (OURS, "dev at 160"), (OURS, "dev at 640")],
    "ten, dev, on scores alone": [(TEN_ALONE, "n = 10: dev at 40"), (TEN_ALONE, "at 160")],
    "ten, test, gradients by channel": [
        (f"{GRADIENTS} 40", "test"),
        (f"{GRADIENTS} 160", "test"),
    ],
    "ten, test, gradients, 50 dev examples a task": [
        ("| GradientSearch by channel, 40", "test"),
        ("| GradientSearch by channel, 160", "test"),
    ],
}


def rows_with_pages():
    """What each row of the measured table is about, its figures, and the text of its page."""
    page = ""
    for line in TEXT.splitlines():
        link = LINK.search(line)
        if line.startswith("| ") and (link or line.endswith("| the same |")):
            page = (GUIDE.parent / link[1]).read_text() if link else page
            name, *figures, _ = [cell.strip() for cell in line.strip("|").split("|")]
            yield name, figures, page


def figure_at(page, place):
    """The figure at a place of a page, without a leading 0 and its standard error."""
    if isinstance(place, str):
        return re.search(place, page)[1]
    begins, column = place
    lines = page.splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith(begins))
    header = next(number for number in range(row, 0, -1) if lines[number].startswith("| ---")) - 1
    names, cells = ([cell.strip(" *") for cell in lines[n].split("|")] for n in (header, row))
    return cells[names.index(column)].split()[0].lstrip("0")


def test_every_figure_of_a_row_stands_on_its_page():
    rows = list(rows_with_pages())
    assert [name for name, _, _ in rows] == list(PLACES)
    for name, figures, page in rows:
        expected = [figure_at(page, place) for place in PLACES[name]]
        assert [figure for figure in figures if figure] == expected, name


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
