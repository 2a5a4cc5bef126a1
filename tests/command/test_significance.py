"""What a run says of chance: in the table, in result.json, in the report and on a terminal."""

import io
import json
import math

import pytest
import torch
from builders import change_settings, history, merge
from rich.console import Console
from scipy import stats

from evox_evogm.command.score_table import print_scores, table_cells
from evox_evogm.command.scores import ScoreRow
from evox_evogm.command.significance import (
    HistoryScores,
    describe_significance,
    further_remarks,
    not_beyond_chance,
    remarks_on_chance,
    round_up,
)
from evox_evogm.problems.scalarization import Objective

NAN = math.nan
RIGHT, WRONG = [1.0], [0.0]


def row(name, kind, dev, test):
    """A row with the scores by example of one task."""
    means = [{"x": sum(scores) / len(scores) if scores else NAN} for scores in (dev, test)]
    examples = {}
    for split, scores in (("dev", dev), ("test", test)):
        examples[split] = {"x": scores} if scores else {}
    return ScoreRow(name, kind, *means, None, examples)


def some_rows():
    """Two experts, the average, a trained LoRA, and a merge that is far ahead on test."""
    return [
        row("base", "base", 8 * WRONG, 40 * WRONG),
        row("good", "expert", 4 * RIGHT + 4 * WRONG, 10 * RIGHT + 30 * WRONG),
        row("bad", "expert", 2 * RIGHT + 6 * WRONG, 12 * RIGHT + 28 * WRONG),
        row("failed", "expert", [], []),
        row("average", "average", 3 * RIGHT + 5 * WRONG, 29 * RIGHT + 11 * WRONG),
        row("LoRA on dev", "trained", 8 * RIGHT, 30 * RIGHT + 10 * WRONG),
        row("EvoGM", "merge", 6 * RIGHT + 2 * WRONG, 30 * RIGHT + 10 * WRONG),
    ]


def some_history():
    tables = [6 * RIGHT + 2 * WRONG, 6 * RIGHT + 2 * WRONG, 2 * WRONG + 6 * RIGHT]
    return history_of([*tables, 5 * RIGHT + 3 * WRONG])


def history_of(tables):
    """Merges with one task, whose mean was searched."""
    table = torch.tensor(tables)
    return HistoryScores({"x": table}, table.mean(1).tolist())


def test_the_lead_of_the_merge_has_the_error_and_p_of_scipy():
    found = describe_significance(some_rows(), some_history())
    assert [gain["over"] for gain in found["gains"]] == ["good", "average", "LoRA on dev"]
    ours, theirs = 30 * RIGHT + 10 * WRONG, 10 * RIGHT + 30 * WRONG
    expected = stats.ttest_rel(ours, theirs)
    test = found["gains"][0]["test"]
    assert test["difference"] == 0.5
    assert test["difference"] / test["se"] == pytest.approx(expected.statistic)
    assert test["p"] == pytest.approx(expected.pvalue)
    assert found["gains"][0]["dev"]["difference"] == 0.25


def test_the_best_two_merges_differ_in_some_example():
    found = describe_significance(some_rows(), some_history())
    # The second is the best again; the third is as good by other answers.
    assert found["best_two"]["difference"] == 0 and found["best_two"]["examples"] == 8
    assert found["best_two"]["needed"] is None and found["merges"] == 4
    one_merge = history_of([[1.0, 0.0]] * 3)
    assert describe_significance(some_rows(), one_merge)["best_two"] is None


def test_a_trained_lora_which_knows_the_answers_has_no_part_in_the_line():
    rows = some_rows()
    found = describe_significance(rows, some_history())["regression"]
    dev, test = [0, 0.5, 0.25, 0.375, 0.75], [0, 0.25, 0.3, 0.725, 0.75]
    expected = stats.linregress(dev, test)
    assert found["slope"] == pytest.approx(expected.slope)
    assert found["se"] == pytest.approx(expected.stderr) and found["rows"] == 5


def two_task_row(name, kind, x, y):
    """A row with the same scores by example on dev and on test."""
    examples = {"x": x, "y": y}
    means = {task: sum(scores) / len(scores) for task, scores in examples.items()}
    return ScoreRow(name, kind, means, means, None, {"dev": examples, "test": examples})


def test_a_weighted_objective_is_compared_in_its_weighted_mean():
    x, y = [1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0, 0.0]
    rows = [
        two_task_row("at x", "expert", 4 * RIGHT, 5 * WRONG),
        two_task_row("at y", "expert", 2 * RIGHT + 2 * WRONG, 5 * RIGHT),
        two_task_row("EvoGM", "merge", x, y),
    ]
    found = describe_significance(rows, HistoryScores({}, ()), Objective(weights={"x": 4.0}))
    (gain,) = found["gains"]
    lead = [4 * (1 - score) for score in x]  # of the expert, which is best with the weights
    expected = stats.ttest_ind(lead, y, equal_var=False)
    assert gain["over"] == "at x" and gain["dev"]["difference"] == pytest.approx((-1 + 0.2) / 5)
    assert gain["dev"]["p"] == pytest.approx(expected.pvalue)
    remarks = remarks_on_chance({"statistics": found})
    assert remarks[0].startswith("On test, in the weighted mean of the tasks, it is .160 ± ")


@pytest.mark.parametrize(
    "needed, expected",
    [
        (2, "it would take somewhat more than these to tell them apart."),
        (41, "it would take about 41 to tell them apart."),
        (None, "no number of examples is known to tell them apart."),
    ],
)
def test_no_fewer_examples_than_there_are_would_tell_merges_apart(needed, expected):
    two = {"difference": 0.3, "se": 0.2, "p": 0.2, "examples": 6, "needed": needed}
    (remark,) = remarks_on_chance({"statistics": {"gains": [], "best_two": two}})
    apart = "The two best merges of the search are .300 ± .200 apart on 6 dev examples: "
    assert remark == apart + expected


def test_the_two_best_merges_are_those_of_the_objective():
    tables = {"x": [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]], "y": [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]}
    history = HistoryScores(
        {name: torch.tensor(table) for name, table in tables.items()}, [0.0, 0.5, 0.4]
    )
    rows = [two_task_row("EvoGM", "merge", RIGHT, RIGHT)]
    found = describe_significance(rows, history, Objective("worst"))
    # The second and the third merge; (0, 0) of x and (-1, 1) of y have no difference in the mean.
    assert found["best_two"]["difference"] == 0 and found["best_two"]["se"] == 0.5
    (remark,) = remarks_on_chance({"statistics": found, "objective": "worst"})
    assert "on 4 dev examples, in the plain mean of the tasks: no number" in remark


def test_a_task_with_one_score_is_left_out_and_named():
    theirs, ours = [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0]
    rows = [two_task_row("a", "average", theirs, [0.2]), two_task_row("m", "merge", ours, [0.9])]
    found = describe_significance(rows, HistoryScores({}, ()))
    p = stats.ttest_rel(ours, theirs).pvalue
    assert found["gains"][0]["test"]["p"] == pytest.approx(p)
    (remark,) = remarks_on_chance({"statistics": found})
    assert remark == (
        "On test, without y (one score), it is .500 ± .289 above the average: this may be chance "
        f"(p = {p:.3f}).".replace("0.", ".")
    )


def result_of(rows, merges):
    return {
        "scores": [row.as_table() for row in rows],
        "statistics": json.loads(json.dumps(describe_significance(rows, merges))),
    }


def test_the_sentences_say_what_is_beyond_chance():
    tables = [6 * RIGHT + 2 * WRONG, WRONG + 4 * RIGHT + 3 * WRONG, 8 * WRONG, 8 * WRONG]
    merges = history_of(tables)
    result = result_of(some_rows(), merges)
    assert remarks_on_chance(result) == [
        "On test it is .500 ± .080 above good, the expert that is best on dev: beyond chance "
        "(p < .001, by Holm over 3).",
        # The second of three p, .323, counts twice.
        "On test it is .025 ± .025 above the average: this may be chance (p = .647, by Holm over "
        "3).",
        "On test it is level with LoRA on dev.",
        # The t test of two differences of 1 among eight: .25 ± .164; (2.8016 * .1637 / .25)^2 * 8.
        "The two best merges of the search are .250 ± .164 apart on 8 dev examples: it would take "
        "about 27 to tell them apart.",
    ]
    assert not_beyond_chance(result) == [
        "The merge is not better beyond chance than the average of the experts, by these test "
        "examples; more of them would tell more."
    ]
    left, reliable, line = further_remarks(result)
    assert left == "Its gain over the average is .375 on dev and .025 on test."
    assert "is expected on other examples (reliability over 4 merges of the search)" in reliable
    assert line.startswith("Over the 5 models of the table, a dev score higher by .1 goes with")


def test_one_example_failed_rows_and_no_history_are_no_error():
    rows = [
        row("base", "base", RIGHT, WRONG),
        row("one", "expert", RIGHT, WRONG),
        row("average", "average", [], []),
        row("EvoGM", "merge", RIGHT, RIGHT),
    ]
    result = result_of(rows, HistoryScores({}, ()))
    assert remarks_on_chance(result) == [
        "On test it is 1.000 above one, the expert that is best on dev; the examples do not say "
        "whether that is chance."
    ]
    assert result["statistics"]["best_two"] is None and further_remarks(result) == []
    assert table_cells(result["scores"], ["x"])[1] == ["base", "1.000 / .000", "1.000 / .000"]


def test_a_merge_that_is_ahead_of_nothing_is_said_to_be():
    scores = [
        row(name, kind, RIGHT, RIGHT)
        for name, kind in (
            ("base", "base"),
            ("one", "expert"),
            ("average", "average"),
            ("EvoGM", "merge"),
        )
    ]
    (sentence,) = not_beyond_chance(result_of(scores, HistoryScores({}, ())))
    than = "one, the best expert on dev, or than the average of the experts, by these test"
    assert sentence.startswith(f"The merge is not better beyond chance than {than}")
    better = [*scores[:3], row("EvoGM", "merge", 8 * RIGHT, 8 * RIGHT)]
    worse = [row(r.name, r.kind, 8 * WRONG, 8 * WRONG) for r in better[:3]]
    assert not_beyond_chance(result_of([*worse, better[-1]], HistoryScores({}, ()))) == []
    assert not_beyond_chance({"statistics": None}) == []


def test_the_experts_that_are_level_with_the_best_are_said_in_result_and_sentences():
    rows = [
        row("one", "expert", RIGHT, WRONG),
        row("two", "expert", RIGHT, RIGHT),
        row("three", "expert", WRONG, RIGHT),
        row("EvoGM", "merge", RIGHT, RIGHT),
    ]
    result = result_of(rows, HistoryScores({}, ()))
    (gain,) = result["statistics"]["gains"]
    assert gain["over"] == "one" and gain["level_with"] == ["two"]
    (remark,) = remarks_on_chance(result)
    assert "above one, the expert that is best on dev, level with two; the examples" in remark
    (sentence,) = not_beyond_chance(result)
    assert "than one, the best expert on dev, level with two, by these test examples" in sentence
    more = [row(name, "expert", RIGHT, WRONG) for name in ("four", "five", "six")]
    result = result_of([*more, *rows], HistoryScores({}, ()))
    assert (
        "above four, the expert that is best on dev, level with 4 others"
        in (remarks_on_chance(result)[0])
    )


def test_an_older_result_has_no_remarks_and_a_table_without_errors():
    rows = [{"name": "base", "kind": "base", "dev": {"x": 0.5}, "test": {"x": 0.25}}]
    assert remarks_on_chance({"scores": rows}) == further_remarks({"scores": rows}) == []
    assert table_cells(rows, ["x"]) == [
        ["model", "x", "mean"],
        ["base", ".500 / .250", ".500 / .250"],
    ]


def two_tasks():
    found = []
    for name, kind in (("base", "base"), ("EvoGM", "merge")):
        scores = {"long_task_one": 0.5, "long_task_two": 0.25}
        errors = {"long_task_one": 0.03, "long_task_two": 0.04}
        table = {"name": name, "kind": kind, "dev": scores, "test": scores}
        found.append({**table, "errors": {"dev": errors, "test": errors}})
    return found


@pytest.mark.parametrize(
    ("width", "cells"),
    [
        (80, ".500 / .500 ± .030  .250 / .250 ± .040  .375 / .375 ± .025"),
        (58, ".500 / .500  .250 / .250  .375 / .375 ± .025"),
        (30, ".375 / .375 ± .025"),
    ],
)
def test_a_terminal_shows_the_errors_that_it_has_room_for(width, cells):
    file = io.StringIO()
    terminal = {"force_terminal": True, "color_system": None, "width": width}
    print_scores(two_tasks(), Console(file=file, **terminal))
    assert file.getvalue().splitlines()[-1].strip() == f"EvoGM  {cells}"


@pytest.mark.parametrize(("number", "rounded"), [(7, 7), (99, 99), (101, 110), (2101, 2200)])
def test_numbers_of_examples_have_two_digits_that_count(number, rounded):
    assert round_up(number) == rounded


def test_a_run_writes_scores_by_example_and_says_how_sure_it_is(project):
    change_settings(project, budget=8, contributions=False)
    assert merge(project) == 0
    out = project / "out"
    result = json.loads((out / "result.json").read_text())
    by_example = json.loads((out / "scores_by_example.json").read_text())
    assert len(by_example["rows"]) == len(result["scores"]) == 5
    assert [len(by_example["examples"][split]["quiz"]) for split in ("dev", "test")] == [4, 6]
    for scored, examples in zip(result["scores"], by_example["rows"], strict=True):
        assert (scored["name"], scored["kind"]) == (examples["name"], examples["kind"])
        for split in ("dev", "test"):
            for task, values in examples[split].items():
                assert scored[split][task] == pytest.approx(sum(values) / len(values), abs=1e-6)
                error = stats.sem(values)
                assert scored["errors"][split][task] == pytest.approx(error, abs=1e-6)
    best = max(history(out), key=lambda record: record["score"])
    for task, values in best["examples"].items():
        assert by_example["rows"][-1]["dev"][task] == pytest.approx(values)
    two = result["statistics"]["best_two"]
    by_point = {tuple(record["coefficients"]): record["tasks"] for record in history(out)}
    means = sorted((tasks["sums"] + tasks["quiz"]) / 2 for tasks in by_point.values())
    assert two["difference"] == pytest.approx(means[-1] - means[-2], abs=1e-6)
    assert result["statistics"]["merges"] == len(by_point) and two["examples"] == 8
    report = (out / "report.md").read_text()
    sentences = remarks_on_chance(result) + further_remarks(result)
    assert len(sentences) >= 3 and "## How sure the scores are\n\n- On test it is " in report
    assert "± is the standard error of a score, over its examples." in report


def test_a_finished_run_of_an_older_version_is_read(project, capsys):
    change_settings(project, budget=4, contributions=False)
    assert merge(project) == 0
    path = project / "out" / "result.json"
    result = json.loads(path.read_text())
    del result["statistics"]
    for scored in result["scores"]:
        del scored["errors"]
    path.write_text(json.dumps(result))
    (project / "out" / "scores_by_example.json").unlink()
    (project / "out" / "adapter" / "adapter_config.json").unlink()
    assert merge(project) == 0
    assert "making it again" in capsys.readouterr().err
    assert "± " not in (project / "out" / "report.md").read_text()
