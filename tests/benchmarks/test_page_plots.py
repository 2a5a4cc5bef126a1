"""The pictures of results pages show numbers of their tables."""

import pytest

from benchmarks.page_plots import PAGES, RESULTS, number, values_of


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_picture_of_its_table(page):
    values = values_of(page)
    assert len(values) >= 2 and values.notna().sum().min() >= 1
    assert f"({page}.svg)" in (RESULTS / f"{page}.md").read_text()
    picture = (RESULTS / f"{page}.svg").read_text()
    for name in values.index:
        assert name.split(",")[0].split(" ")[0].replace("&", "&amp;") in picture


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("0.532 ± 0.011", 0.532), (".406", 0.406), ("1,352", 1352), ("-.3", -0.3)],
)
def test_a_cell_is_the_number_that_it_begins_with(cell, expected):
    assert number(cell) == expected
