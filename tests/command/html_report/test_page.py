"""The page as a browser reads it: numbers are those of the run folder, and no name is markup."""

import json
import math
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from builders_run import report_data, row, write_run

from evox_evogm.command.html_report import report_html, write_report
from evox_evogm.command.html_report.page import write_page

EMPTY = {"meta", "link", "br", "wbr", "line", "path", "rect"}


class Page(HTMLParser):
    """Elements with their attributes, texts, and tables by caption."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.tables, self.line = {}, None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in EMPTY:
            return
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "caption":
            self.caption = data
        elif "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", data=report_data())


def shown(score):
    """A score as the tables show it."""
    return f"{score:.3f}".replace("0.", ".", 1) if score < 1 else f"{score:.3f}"


def test_the_tables_have_the_scores_of_the_result_and_errors_of_zeros_and_ones(run):
    page = Page(report_html(run))
    result = json.loads((run / "result.json").read_text())
    rows = {found["name"]: found for found in result["scores"]}
    header, mean, *lines = page.tables["Test: examples that the search did not see"]
    assert header == ["", "base", "best expert", "average", "merge"]
    assert mean[0] == "mean over tasks" and [line[0] for line in lines] == ["add", "sub"]
    for line in lines:
        for name, cell in zip(("base", "b", "average", "SurrogateEvoGM"), line[1:], strict=True):
            score = rows[name]["test"][line[0]]
            # The sample variance of eight zeros and ones is s (1 - s) 8 / 7.
            error = math.sqrt(score * (1 - score) / 7)
            assert cell.split() == [shown(score), "±", shown(error)]
    every = page.tables["Dev, every model"]
    assert [line[0] for line in every[1:]] == list(rows)
    for line in every[1:]:
        dev = rows[line[0]]["dev"]
        assert [cell.split()[0] for cell in line[1:]] == [
            shown(sum(dev.values()) / 2),
            shown(dev["add"]),
            shown(dev["sub"]),
        ]


def test_the_table_of_experts_has_coefficients_and_what_the_merge_loses_without_each(run):
    page = Page(report_html(run))
    result = json.loads((run / "result.json").read_text())
    header, *lines = page.tables["Coefficients"]
    assert header == ["no.", "expert", "coefficient", "box", "dev score it gives"]
    losses = [".000 ± .071", ".250 ± .071", ".500 ± .071"]  # .1 / sqrt(2) over two tasks
    for place, (name, value) in enumerate(result["coefficients"].items()):
        coefficient = f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
        number = str(place + 1)
        assert lines[place] == [number, name, coefficient, "inside", losses[place]]


def test_the_page_says_what_was_merged_how_and_what_it_cost(run):
    text = Page(report_html(run)).text
    for words in (
        "SurrogateEvoGM searched merges of 3 LoRA experts of base in 12 evaluations, on 8 dev "
        "examples of 2 tasks. On 16 test examples that the search did not see, the merge scores "
        # Errors by hand: sqrt(p (1 - p) / 7 / 2), of two tasks with 8 examples each.
        ".625 ± .129, the base .125 ± .088, the expert that is best on dev (b) .375 ± .129 and the "
        "average of the experts .500 ± .134.",
        "evogm merge run.yaml --out out",
        "time of the evaluations 6 s",
        "time of leaving each expert out 2 s",
        "seed 3",
        "torch 2.13.0",
        "Of 8 test examples, the merge scores higher than the best expert (a) in 5 and lower in 1.",
        "✓ right",
        "✗ wrong",
    ):
        assert words in text


def test_the_page_says_which_experts_are_level_as_the_best(tmp_path):
    folder = write_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    for found in result["scores"]:
        if found["name"] == "c":
            found["dev"] = {"add": 0.25, "sub": 0.75}  # the mean of b
    (folder / "result.json").write_text(json.dumps(result))
    text = Page(report_html(folder)).text
    assert "the expert that is best on dev (b, level with c) .375" in text
    assert "The best expert, b, is the one with the highest mean on dev, level with c." in text
    assert "best experts, b and c .500" in text  # beside the line of the search's picture


def test_nothing_comes_from_elsewhere_and_no_script_runs(run):
    page = Page(report_html(run))
    policies = []
    for tag, attributes in page.elements:
        assert tag != "script"
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "data:,") == "data:,"
        if attributes.get("http-equiv") == "Content-Security-Policy":
            policies.append(attributes["content"])
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


EVIL = "</style></svg></pre><script>alert(1)</script>\" onload='x' {{ 7 * 7 }}\u202e\x1b[31m"

# In a block of lines every such character leaves a blank.
SECOND = " onload='x' {{ 7 * 7 }}  [31m\nsecond line"


def test_names_and_texts_of_others_are_shown_and_never_markup(tmp_path):
    experts, tasks = (EVIL, "b"), (f"{EVIL} task", "sub")
    data = report_data(experts, tasks, prompt=f"{EVIL}\nsecond line", answer=EVIL)
    data["command"] = data["examples"]["shown"][0]["id"] = EVIL
    found = {"sentence": EVIL, "causes": [EVIL], "task": EVIL, "example": EVIL}
    found |= {"prompt": EVIL, "output": EVIL, "expected": EVIL}
    changes = {"no_information": found, "notes": [EVIL], "versions": {"torch": EVIL}}
    folder = write_run(tmp_path / "run", experts=experts, tasks=tasks, data=data, **changes)
    write_report(folder)
    text = (folder / "report.html").read_text()
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags and "iframe" not in tags
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    assert text.count("</style>") == 1 and "\u202e" not in text and "\x1b" not in text
    visible = "</style></svg></pre><script>alert(1)</script>\" onload='x' {{ 7 * 7 }} [31m"
    assert page.text.count(visible) > 8 and SECOND in "".join(page.texts)
    for path in (folder / "figures").glob("*.svg"):
        assert "script" not in {found.tag.split("}")[1] for found in ElementTree.parse(path).iter()}


def test_every_figure_has_title_and_description_and_every_header_cell_a_scope(run):
    page = Page(report_html(run))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    charts = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(charts) == 9
    for chart in charts:
        assert chart["role"] == "img" and set(chart["aria-labelledby"].split()) <= set(ids)
    headers = [attributes for tag, attributes in page.elements if tag == "th"]
    assert all(attributes["scope"] in ("col", "row") for attributes in headers)


def test_the_figures_lie_beside_the_page_as_svg(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cairosvg", None)  # as if it were not installed
    page = write_report(run)
    assert page == run / "report.html"
    text = Page(page.read_text()).text
    assert "For PNG files too: pip install cairosvg, which is the extra figures" in text
    names = sorted(path.name for path in (run / "figures").iterdir())
    assert names == sorted(
        f"{name}.svg"
        for name in (
            "scores",
            "best_so_far",
            "spread",
            "exploration",
            "coefficients",
            "contributions",
            "landscape",
            "dev_and_test",
            "held_out",
        )
    )
    for name in names:
        root = ElementTree.parse(run / "figures" / name).getroot()
        style, title = root.find("{*}style"), root.find("{*}title")
        assert "prefers-color-scheme:dark" in style.text and "var(" not in style.text
        assert title.text


def test_a_figure_is_a_png_where_the_library_is_installed(run):
    pytest.importorskip("cairosvg")
    write_report(run)
    for path in (run / "figures").glob("*.svg"):
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_run_of_an_earlier_version_has_a_report_too(tmp_path):
    page = Page(report_html(write_run(tmp_path / "run")))
    assert "This run has no answers to show." in page.text
    assert "What each expert gives was not evaluated" in page.text
    assert page.tables["Coefficients"][0] == ["no.", "expert", "coefficient", "box"]


def test_rows_that_failed_flat_scores_and_a_single_evaluation_have_a_report(tmp_path):
    nan = math.nan
    tasks = ("add", "sub")
    failed = {**row("a", "expert", tasks, nan, nan), "failure": "memory ran out"}
    rows = [
        row("base", "base", tasks, 0.5, 0.5),
        failed,
        row("average", "average", tasks, nan, nan),
    ]
    rows.append(row("EvoGM", "merge", tasks, 0.5, 0.5))
    folder = tmp_path / "run"
    write_run(folder, experts=("a",), scores=rows, evaluations=1, pop_size=1, adapter=None)
    page = Page(report_html(folder))
    assert "It cannot be compared with the average: scores are missing." in page.text
    assert page.tables["Dev, every model"][2][1:] == ["none"] * 3
    rows[-1] = {**row("EvoGM", "merge", tasks, nan, nan), "failure": "no"}
    write_run(folder, experts=("a",), scores=rows, evaluations=1, pop_size=1, adapter=None)
    assert "The merge has no test score." in Page(report_html(folder)).text


@pytest.mark.slow
def test_the_page_of_a_large_run_is_below_300_kilobytes(tmp_path):
    experts = [f"expert_number_{place}" for place in range(64)]
    tasks = [f"task_number_{place}" for place in range(30)]
    layers = [f"model.layers.{place}" for place in range(30)]
    data = report_data(experts, tasks)
    data["examples"]["shown"] *= 5
    for groups in ((), layers):
        folder = tmp_path / f"run{len(groups)}"
        write_run(folder, experts=experts, tasks=tasks, groups=groups, evaluations=1000, data=data)
        size = len(report_html(folder).encode())
        assert 100_000 < size < 300_000


def test_a_missing_history_is_one_sentence_and_does_not_end_a_run(tmp_path, caplog):
    folder = write_run(tmp_path / "run")
    (folder / "history.jsonl").unlink()
    with pytest.raises(ValueError, match=r"out: expected .*history.jsonl.*, found none"):
        report_html(folder)
    write_page(folder)
    assert "report.html could not be written: ValueError" in caplog.text
    assert not (folder / "report.html").exists()
