"""The page in a real browser, where one is installed."""

import pytest
from builders_run import report_data, write_run
from chromium import browser, find_chromium

from evox_evogm.command.html_report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed"),
]
LONG = "a_very_long_name_of_an_expert_" * 5
ENDLESS = "x" * 300  # without any place to break it


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def pages(tmp_path):
    """The addresses of reports: a usual one, one with long names, one with groups, an old one."""
    usual = write_run(tmp_path / "usual", data=report_data())
    experts, tasks = (LONG, ENDLESS, "c"), (ENDLESS, LONG)
    data = report_data(experts, tasks, prompt=ENDLESS, answer=ENDLESS)
    long = write_run(tmp_path / "long", experts=experts, tasks=tasks, data=data)
    many = tuple(f"expert_{place}" for place in range(64))
    groups = [f"model.layers.{place}.self_attn.q_proj" for place in range(30)]
    grouped = write_run(tmp_path / "grouped", experts=many, groups=groups)
    one = write_run(tmp_path / "one", experts=("a",), data=report_data(("a",)))
    return [write_report(run).resolve().as_uri() for run in (usual, long, grouped, one)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_complaint_asks_for_nothing_and_fits_a_telephone(tab, tmp_path, scheme):
    for url in pages(tmp_path):
        for width in (360, 1100):
            tab.open(url, width, scheme=scheme, phone=width == 360)
            assert tab.complaints() == []
            assert tab.requests() == [url]
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            outside = """[...document.querySelectorAll('svg,figure,pre,p,h1,h2,h3,dl')].filter(
                element => element.getBoundingClientRect().right > window.innerWidth + 1).length"""
            assert tab.evaluate(outside) == 0


def test_the_colours_are_those_of_the_scheme_and_print_is_light(tab, tmp_path):
    url = pages(tmp_path)[0]
    colour = "getComputedStyle(document.body).backgroundColor"
    tab.open(url, 1100, scheme="light")
    assert tab.evaluate(colour) == "rgb(255, 255, 255)"
    tab.open(url, 1100, scheme="dark")
    assert tab.evaluate(colour) == "rgb(20, 24, 28)"
    tab.send("Emulation.setEmulatedMedia", media="print")
    assert tab.evaluate(colour) == "rgb(255, 255, 255)"
    assert tab.pdf().startswith(b"%PDF")


def test_texts_of_figures_can_be_read(tab, tmp_path):
    """On a telephone at least 10 pixels high, and inside their figures."""
    tab.open(pages(tmp_path)[0], 360, phone=True)
    smallest = """Math.min(...[...document.querySelectorAll('svg text')].map(text =>
        parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"""
    assert tab.evaluate(smallest) >= 10
    outside = """[...document.querySelectorAll('svg text')].filter(text => {
        const inner = text.getBoundingClientRect();
        const outer = text.ownerSVGElement.getBoundingClientRect();
        return inner.left < outer.left - 1 || inner.right > outer.right + 1;
    }).map(text => text.textContent)"""
    assert tab.evaluate(outside) == []
