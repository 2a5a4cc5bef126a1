"""What single figures and sentences show."""

import json
import re

import pytest
from builders_run import report_data, write_run
from scipy.stats import norm

from evox_evogm.command.html_report.coefficient_charts import (
    at_edge,
    coefficients,
    without_common_beginning,
)
from evox_evogm.command.html_report.figures import figures_of
from evox_evogm.command.html_report.formats import duration, percent, short, signed, with_minus
from evox_evogm.command.html_report.run_data import read_run
from evox_evogm.command.html_report.svg import shorten, spread_labels, tick_label, ticks
from evox_evogm.command.html_report.verdict import is_it_chance, unpaired_lead


@pytest.fixture
def run(tmp_path):
    return read_run(write_run(tmp_path / "run", data=report_data()))


def changed(tmp_path, coefficients=None, **changes):
    """A run with other coefficients of its merge."""
    folder = write_run(tmp_path / "changed", data=report_data(), **changes)
    result = json.loads((folder / "result.json").read_text())
    if coefficients is not None:
        result["coefficients"] = coefficients
    (folder / "result.json").write_text(json.dumps(result))
    return read_run(folder)


def test_a_coefficient_at_the_edge_of_the_box_is_marked(tmp_path, run):
    assert not at_edge(run).any()
    assert "No coefficient stands at its edge." in coefficients(run).caption
    # The box is 2 wide: up to .04 from its ends, and beyond them.
    found = changed(tmp_path, {"a": 0.97, "b": -1.2, "c": 0.95})
    assert at_edge(found)[:, 0].tolist() == [True, True, False]
    figure = coefficients(found)
    assert "2 of 3 coefficients stand at its edge" in figure.caption
    assert str(figure.svg).count('class="edge"') == 2


def test_with_groups_a_map_has_a_cell_for_every_coefficient_and_dots_at_the_edge(tmp_path):
    groups = [f"model.layers.{place}.q_proj" for place in range(3)]
    folder = write_run(tmp_path / "run", groups=groups, data=report_data())
    result = json.loads((folder / "result.json").read_text())
    result["coefficients_by_group"]["b"] = dict(zip(groups, (1.0, 0.5, -0.5), strict=True))
    result["coefficients_by_group"]["a"] = dict(zip(groups, (0.01, 0.5, 0.0), strict=True))
    (folder / "result.json").write_text(json.dumps(result))
    svg = str(coefficients(read_run(folder)).svg)
    cells = {}
    for data, style in re.findall(r'd="([^"]*)" class="([pn]\d)"', svg):
        for column, row, width in re.findall(r"M(\d+) (\d+)h(\d+)", data):
            for place in range(int(column), int(column) + int(width)):
                cells[place, int(row)] = style
    assert (cells[1, 0], cells[1, 1], cells[1, 2]) == ("p6", "p3", "n3")
    assert cells[0, 1] == "p3" and (0, 0) not in cells and (0, 2) not in cells
    assert re.search(r'class="dots edge-dot"', svg)
    assert "0.q_proj" in svg and "model.layers" not in svg


def test_channels_of_a_module_are_one_row_of_the_map_with_their_mean(tmp_path):
    groups = [f"layers.{place // 2}.q_proj, channel {place % 2}" for place in range(4)]
    folder = write_run(tmp_path / "run", groups=groups, data=report_data())
    result = json.loads((folder / "result.json").read_text())
    for expert, values in zip("abc", [(1.0, 0.2, 0, 0), (0.9, 0.3, 0, 0), (0,) * 4], strict=True):
        result["coefficients_by_group"][expert] = dict(zip(groups, values, strict=True))
    (folder / "result.json").write_text(json.dumps(result))
    figure = coefficients(read_run(folder))
    svg = str(figure.svg)
    # Both means are .6, which is the largest.
    assert re.findall(r'd="([^"]*)" class="([pn]\d)" */?>', svg)[0] == ("M0 0h2", "p6")
    assert "0.q_proj" in svg and "channel 0" not in svg and "channel 1" not in svg
    assert "A cell is the mean over the channels of a module." in figure.caption
    assert "1 of 12 coefficient stands at its edge" in figure.caption
    assert figure.caption.endswith("Cells with one have a dot.")
    assert svg.count("edge-dot") == 1


def test_names_lose_the_parts_that_all_begin_with():
    assert without_common_beginning(["m.layers.1.q", "m.layers.12.q"]) == ["1.q", "12.q"]
    assert without_common_beginning(["m.q"]) == ["m.q"]
    assert without_common_beginning(["attention", "attributes"]) == ["attention", "attributes"]


def test_the_best_score_so_far_is_that_of_the_history(run):
    scores = [record["score"] for record in run.records]
    caption = figures_of(run)["best_so_far"].caption
    best = max(scores)
    assert f"The best, {short(best)}, was reached by evaluation {scores.index(best) + 1} of 12" in (
        caption
    )


def test_a_run_has_only_the_figures_that_its_history_can_fill(tmp_path):
    few = read_run(write_run(tmp_path / "few", evaluations=4, pop_size=1))
    names = {"scores", "best_so_far", "exploration", "coefficients", "dev_and_test"}
    assert figures_of(few).keys() == names
    flat = read_run(write_run(tmp_path / "one", evaluations=1))
    assert "exploration" not in figures_of(flat) and "spread" not in figures_of(flat)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_landscape_of_any_number_of_coefficients(tmp_path, count):
    experts = ("a", "b", "c")[:count]
    run = read_run(write_run(tmp_path / "run", experts=experts, evaluations=15))
    caption = figures_of(run)["landscape"].caption
    assert "interpolated, not evaluated: a Gaussian process fitted to the dev score" in caption
    assert ("first direction is" in caption) == (count > 2)


@pytest.mark.parametrize("tasks", [("add", "sub"), ("add", "sub", "mul")])
def test_the_front_of_a_search_with_several_objectives(tmp_path, tasks):
    front = []
    for number in range(3):
        dev = dict(zip(tasks, (number / 2, 1 - number / 2, 0.5), strict=False))
        entry = {"dev": dev, "test": dev, "coefficients": {"a": 0.5}, "exported": number == 1}
        front.append(entry)
    changes = {"front": front, "objective": "pareto", "weights": {}, "constraints": {}}
    run = read_run(write_run(tmp_path / "run", tasks=tasks, **changes))
    figure = figures_of(run)["front"]
    assert "3 merges that no other beats" in figure.caption and "merge-" in str(figure.svg)


def test_an_older_run_is_compared_as_of_independent_examples(run):
    found = unpaired_lead(run.merge, run.best_expert)
    # Two tasks of eight zeros and ones each: means .625 and .375 in both.
    se = (2 * 0.625 * 0.375 / 7) ** 0.5 / 2**0.5
    assert found.difference == pytest.approx(0.25) and found.se == pytest.approx(se)
    assert found.p == pytest.approx(2 * norm.sf(0.25 / se))
    assert is_it_chance(run)[0].startswith("It is .250 above the best expert (± .183): this may be")
    assert is_it_chance(run)[-1] == "Examples are not paired here, which is cautious."


def test_the_first_paragraph_has_the_paired_tests_of_the_result(tmp_path):
    gain = {"difference": 0.25, "se": 0.05, "p": 0.0004}
    gains = [{"over": "b", "kind": "expert", "dev": gain, "test": gain}]
    statistics = {"gains": gains, "best_two": None, "reliability": None, "regression": None}
    run = read_run(write_run(tmp_path / "run", statistics=statistics))
    (sentence,) = is_it_chance(run)
    assert ".250 ± .050 above b" in sentence and "beyond chance (p < .001)" in sentence


def test_ticks_are_round_and_inside():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(-0.7, 0.4, 4) == pytest.approx([-0.5, 0])
    assert ticks(3.0, 470.0) == pytest.approx([100, 200, 300, 400])
    assert tick_label(-0.25, 0.05) == "\N{MINUS SIGN}0.25" and tick_label(-0.0, 0.5) == "0.0"


def test_labels_do_not_lie_on_each_other():
    assert spread_labels([50, 52, 20], 10, 100) == [50, 65, 20]
    assert spread_labels([90, 95], 10, 100) == [85, 100]


def test_numbers_as_the_report_shows_them():
    assert [short(value) for value in (0.5, -0.25, 1.0, -1.5, -0.0001)] == [
        ".500",
        "\N{MINUS SIGN}.250",
        "1.000",
        "\N{MINUS SIGN}1.500",
        ".000",
    ]
    assert [signed(value) for value in (0.5, -0.25, -0.0001)] == [
        "+0.500",
        "\N{MINUS SIGN}0.250",
        "0.000",
    ]
    assert with_minus("expert-1: -.25 ± .1, +0.5 / -1") == (
        "expert-1: \N{MINUS SIGN}.25 ± .1, +0.5 / \N{MINUS SIGN}1"
    )
    assert [percent(share) for share in (-0.1, 0.126, 1.2)] == ["0%", "13%", "100%"]
    assert [duration(seconds) for seconds in (3, 150, 7000, 9000)] == [
        "3 s",
        "2 min",
        "117 min",
        "2.5 h",
    ]
    assert shorten("abcdefghij", 5) == "ab…ij" and shorten("abc", 5) == "abc"
