"""`evogm score` and `evogm compare`. What is right is what scipy and the run itself say."""

import json
import re

import pytest
from builders import change_settings, merge

from evox_evogm.command import cli
from evox_evogm.command.compare_models import Model, compare, verdict
from evox_evogm.command.score_models import print_rows
from evox_evogm.command.scores import ScoreRow
from evox_evogm.command.targets import read_targets


@pytest.fixture
def small(project):
    """A project with a budget of one population, in whose quiz answers differ."""
    change_settings(project, budget=4)
    return project


def scored(project, *words, out="scores.json"):
    path = project / out
    words = [str(project / "run.yaml"), "--out", str(path), *map(str, words)]
    assert cli.main(["score", *words]) == 0
    return json.loads(path.read_text())


def test_models_score_as_in_the_run_that_merged_them(small, capsys):
    assert merge(small) == 0
    result = json.loads((small / "out" / "result.json").read_text())
    coefficients = ",".join(map(repr, result["coefficients"].values()))
    capsys.readouterr()
    adapter = small / "experts" / "second"
    table = scored(small, "base", "first", adapter, "average", small / "out", "--", coefficients)
    shown = capsys.readouterr().out
    rows = [row for row in result["scores"] if row["name"] != "EvoGM"] + 2 * [result["scores"][-1]]
    for row, expected in zip(table["scores"], rows, strict=True):
        assert row["kind"] == expected["kind"]
        for split in ("dev", "test"):
            assert row[split] == pytest.approx(expected[split], abs=1e-4)
            assert row["errors"][split] == pytest.approx(expected["errors"][split], abs=1e-4)
    assert "scores, dev / test ± its standard error" in shown


def test_two_models_are_compared_as_scipy_does(small, capsys):
    from scipy import stats

    table = scored(small, "first", "second")
    rows = {row["name"]: row["test"]["sums"] for row in table["rows"]}
    expected = stats.ttest_rel(rows["first"], rows["second"])
    path = small / "scores.json"
    capsys.readouterr()
    assert cli.main(["compare", f"{path}:first", f"{path}:second"]) == 0
    printed = capsys.readouterr().out
    (line,) = [line.split() for line in printed.splitlines() if line.startswith("sums ")]
    assert line[1] == "4"
    difference = sum(rows["first"]) / 4 - sum(rows["second"]) / 4
    error = difference / expected.statistic
    for place, name in ((2, "first"), (5, "second")):
        assert float(line[place]) == pytest.approx(sum(rows[name]) / 4, abs=2e-3)
        assert float(line[place + 2]) == pytest.approx(stats.sem(rows[name]), abs=2e-3)
    assert float(line[8]) == pytest.approx(difference, abs=2e-3)
    assert float(line[10]) == pytest.approx(abs(error), abs=2e-3)
    assert float(line[11]) == pytest.approx(expected.pvalue, abs=2e-3)
    assert "On test" in printed and ("beyond chance" in printed or "may be chance" in printed)


def test_runs_rows_and_adapters_are_compared(small, capsys):
    assert merge(small) == 0
    out = str(small / "out")
    capsys.readouterr()
    assert cli.main(["compare", out, f"{out}:EvoGM"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"comparing {out} with {out}:EvoGM on test ...\n")
    assert "both have the same mean score" in printed
    assert cli.main(["compare", f"{out}:first", str(small / "experts" / "first")]) == 0
    printed = capsys.readouterr().out
    assert f"reading the base model base and the tasks, and scoring {small}" in printed
    (line,) = [line.split() for line in printed.splitlines() if line.startswith("mean ")]
    assert abs(float(line[8])) < 1e-3  # of the run and now: one expert, up to rounding


def test_other_examples_rows_and_files_are_refused(small, capsys):
    assert merge(small) == 0
    table = json.loads((small / "out" / "scores_by_example.json").read_text())
    other = small / "other.json"
    table["examples"]["test"]["sums"][0] = "another question"
    other.write_text(json.dumps(table))
    out = str(small / "out")
    for second, sentence in [
        (f"{other}:first", "expected the same examples of task 'sums' on test"),
        (f"{out}:third", "expected a row 'third'"),
        (str(small / "run.yaml"), "found it damaged"),
        (str(small / "base"), "expected a run folder, a file of evogm score or an adapter folder"),
    ]:
        capsys.readouterr()
        assert cli.main(["compare", out, second]) == 2
        assert sentence in capsys.readouterr().err
    assert cli.main(["compare", str(small / "experts" / "first"), str(other)]) == 2
    assert "expected --settings, whose tasks score the adapters" in capsys.readouterr().err


def model(name, digest, scores=(0.5, 1.0, 0.0)):
    by_split = {"test": {"sums": list(scores)}}
    ids = {"test": {"sums": [str(number) for number in range(len(scores))]}}
    return Model(name, by_split, ids, {"sums (test)": digest} if digest else {})


def test_questions_with_the_same_numbers_are_not_taken_for_the_same_questions():
    with pytest.raises(ValueError, match="expected the same examples of task 'sums' on test"):
        compare(model("a", "12"), model("b", "34"), "test")
    for other in ("12", None):  # a file of scores has no digests
        (line, mean) = compare(model("a", "12"), model("b", other, (0.5, 0.5, 0.5)), "test")
        assert line.lead == mean.lead and (line.first, line.second) == (0.5, 0.5)


def test_the_verdict_says_which_is_ahead_and_whether_by_chance():
    one, other = model("a", None, 20 * (0.5, 1.0)), model("b", None, 20 * (0.0, 0.25))
    *_, mean = compare(one, other, "test")
    expected = r"^On test, a is .625 ± .020 above b: beyond chance \(p < .001\)\.$"
    assert re.match(expected, verdict(one, other, "test", mean))
    *_, mean = compare(other, one, "test")
    assert " below a: beyond chance" in verdict(other, one, "test", mean)


def test_a_task_with_one_score_does_not_hide_what_the_others_say():
    scores = {"a": 20 * [0.5, 1.0], "b": 20 * [0.0, 0.25]}
    models = []
    for name, values in scores.items():
        by_split = {"test": {"sums": values, "bleu": values[:1]}}
        ids = {"test": {"sums": list(map(str, range(40))), "bleu": ["all"]}}
        models.append(Model(name, by_split, ids, {}))
    *_, mean = compare(*models, "test")
    # As of the task alone: .625 with the error of 20 times .5 and .75.
    expected = "On test, in the mean without bleu (one score), a is .625 ± .020 above b: beyond"
    assert verdict(*models, "test", mean).startswith(expected)


EXPERTS = {"one": "experts/one", "two": "experts/two"}


@pytest.mark.parametrize(
    ("word", "kind", "coefficients"),
    [
        ("base", "base", {}),
        ("average", "average", {"one": 0.5, "two": 0.5}),
        ("two", "expert", {"two": 1.0}),
        ("0.25,-1", "merge", {"one": 0.25, "two": -1.0}),
        ("two=0.5", "merge", {"two": 0.5}),
        ("two=0.5,one=1e-3", "merge", {"one": 0.001, "two": 0.5}),
    ],
)
def test_words_for_models(word, kind, coefficients):
    (target,) = read_targets([word], EXPERTS).models
    assert (target.name, target.kind, target.coefficients) == (word, kind, coefficients)


@pytest.mark.parametrize(
    "word", ["0.5", "1,2,3", "third=1", "nan,1", "one=", "one=1,one=2", "nowhere"]
)
def test_words_for_no_model(word):
    with pytest.raises(ValueError, match="^score: expected"):
        read_targets([word], EXPERTS)


def test_no_words_stand_for_base_experts_and_average():
    targets = read_targets([], EXPERTS)
    assert [target.name for target in targets.models] == ["base", "one", "two", "average"]


def test_a_failure_steers_no_terminal(capsys):
    from rich.console import Console

    scores = {"sums": float("nan")}
    row = ScoreRow("a\x1b[31m", "expert", scores, scores, "too\x1b[2J\nlong")
    print_rows([row], Console(width=80))
    assert "note: a [31m: could not be scored: too [2J long\n" in capsys.readouterr().out
