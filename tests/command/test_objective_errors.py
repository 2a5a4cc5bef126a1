"""Standard errors of what a search makes large, and of what reports show."""

import math
import statistics

import pytest

from evox_evogm.command.domains import domain_cells
from evox_evogm.command.exports.exported import Scores
from evox_evogm.command.objective_errors import harmonic_error, objective_error
from evox_evogm.command.objective_remarks import front_cells, objective_cells, sentence_of
from evox_evogm.command.score_table import table_cells
from evox_evogm.problems.scalarization import Objective

MEANS, ERRORS = {"a": 0.5, "b": 0.25}, {"a": 0.03, "b": 0.04}
ROW = {"name": "base", "kind": "base", "dev": MEANS, "test": MEANS}
ROW = {**ROW, "errors": {"dev": ERRORS, "test": {"a": 0.01, "b": "nan"}}}


def by_differences(value, step=1e-6):
    """The standard error of a function of both means, to first order, by finite differences."""
    total = 0.0
    for name, error in ERRORS.items():
        moved = {**MEANS, name: MEANS[name] + step}
        total += ((value(moved) - value(MEANS)) / step * error) ** 2
    return math.sqrt(total)


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (Objective(), lambda means: statistics.mean(means.values())),
        (
            Objective(weights={"a": 3.0}),
            lambda means: statistics.fmean(means.values(), weights=[3, 1]),
        ),
        (Objective("worst"), lambda means: min(means.values())),
        (Objective("harmonic"), lambda means: statistics.harmonic_mean(list(means.values()))),
        (
            Objective("harmonic", {"b": 2.0}),
            lambda means: statistics.harmonic_mean(list(means.values()), weights=[1, 2]),
        ),
    ],
)
def test_the_error_of_an_objective_is_that_of_its_slopes(objective, value):
    expected = by_differences(value)
    assert objective_error(objective, MEANS, ERRORS) == pytest.approx(expected, rel=1e-4)


def test_what_is_not_known_has_no_error():
    assert math.isnan(objective_error(Objective(), MEANS, {"a": 0.1}))
    assert math.isnan(objective_error(Objective("harmonic"), {"a": 0.0, "b": 1.0}, ERRORS))
    assert math.isnan(harmonic_error([0.5, math.nan], [0.1, 0.1]))


def test_tables_show_errors_where_they_are_known():
    assert table_cells([ROW], ["a", "b"])[1] == [
        "base",
        ".500 ± .030 / .500 ± .010",
        ".250 ± .040 / .250",
        ".375 ± .025 / .375",
    ]
    domains = {"both": {"tasks": ["a", "b"]}}
    # Slopes of 2/9 and 8/9 at the harmonic mean of 1/3.
    assert domain_cells([ROW], domains)[1] == ["base", ".333 ± .036 / .333"]
    cells = objective_cells({"objective": "worst", "scores": [ROW]})
    assert cells[1] == ["base", ".250 ± .040 / .250"]
    entry = {**ROW, "coefficients": {"x": 1.0}, "exported": True}
    assert front_cells([entry])[1][1:3] == [
        ".500 ± .030 / .500 ± .010",
        ".250 ± .040 / .250",
    ]


def test_a_constraint_has_the_error_of_the_score_that_it_is_about():
    kept = {"least": 0.4, "score": 0.5, "kept": True, "error": 0.03}
    found = {"against": None, "lose": 0, "dev": kept, "test": {**kept, "error": None}}
    expected = "kept on dev (.500 ± .030, least .400) and kept on test (.500, least .400)"
    assert expected in sentence_of("a", found)


def test_an_export_shows_means_with_their_errors():
    scores = Scores({"dev": MEANS, "test": MEANS}, {"dev": ERRORS, "test": {"a": 0.1, "b": None}})
    assert scores.shown_mean("dev") == "0.375 ± 0.025"
    assert scores.shown_mean("test") == "0.375"
