"""What a person reads at the end, compared to the letter."""

import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from evox_evogm.command.model_card import model_card
from evox_evogm.command.report import report_markdown
from evox_evogm.command.score_table import print_scores, remarks_on_merge
from evox_evogm.monitoring.escaping import sanitize

ROWS = [
    {
        "name": "base",
        "kind": "base",
        "dev": {"add": 0.25, "long_task_name": 1.0},
        "test": {"add": 0.5, "long_task_name": 0.0},
    },
    {
        "name": "EvoGM",
        "kind": "merge",
        "dev": {"add": 0.75, "long_task_name": 0.5},
        "test": {"add": 0.125, "long_task_name": -0.25},
    },
]


def printed(rows, **console):
    """The table of scores as a log or a terminal gets it, line by line."""
    file = io.StringIO()
    print_scores(rows, Console(file=file, **console))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_the_table_shows_dev_and_test_of_every_task_and_their_mean():
    assert printed(ROWS) == [
        "                    long_task_",
        "model  add          name          mean",
        "─" * 46,
        "base   .250 / .500  1.000 / .000  .625 / .250",
        "EvoGM  .750 / .125  .500 / -.250  .625 / -.062",
    ]


def test_a_log_gets_the_whole_table_and_a_narrow_terminal_the_means():
    tasks = [f"task_{number}" for number in range(20)]
    scores = dict.fromkeys(tasks, 0.5)
    rows = [{"name": "base", "kind": "base", "dev": scores, "test": scores}]
    assert printed(rows)[-1].count(".500 / .500") == 21
    terminal = {"force_terminal": True, "color_system": None, "width": 80}
    lines = printed(rows, **terminal)
    assert [line.split() for line in (lines[0], lines[-1])] == [
        ["model", "mean"],
        ["base", ".500", "/", ".500"],
    ]


def result(coefficients, **changes):
    return {
        "algorithm": "EvoGM",
        "base": "my-base",
        "scores": ROWS,
        "coefficients": coefficients,
        "coefficients_by_group": {},
        "tasks": {
            "add": {
                "metric": "exact_match",
                "protocol": "ours",
                "dev": 4,
                "test": 8,
                "version": "x",
            }
        },
        "versions": {"torch": "2.13.0", "evox-evogm": "0.1.0"},
        "evaluations": 16,
        "full_evaluations": 16.0,
        "regmean": False,
        "seed": 3,
        "dtype": "float32",
        "device": "cpu",
        "threads": 2,
        "seconds": 12.0,
        "adapter": {"folder": "adapter", "largest_relative_difference": 1e-8, "error": None},
        "notes": [],
        "no_information": None,
        **changes,
    }


def test_the_report_to_the_letter():
    assert report_markdown(result({"a": 0.5, "b": -1.0})).splitlines() == [
        "# Merge report",
        "",
        "EvoGM searched merges of 2 LoRA experts of my-base in 16 evaluations, on 4 dev examples "
        "of 1 task.",
        "",
        "Scores are `dev / test`, higher is better. The search saw only the dev examples.",
        "",
        "| model | add | long_task_name | mean |",
        "| --- | --- | --- | --- |",
        "| base | .250 / .500 | 1.000 / .000 | .625 / .250 |",
        "| EvoGM | .750 / .125 | .500 / -.250 | .625 / -.062 |",
        "",
        "EvoGM is the merge with the best observed dev score.",
        "",
        "## Coefficients",
        "",
        "| expert | coefficient | |",
        "| --- | ---: | --- |",
        "| a | +0.5000 | `++++++++++` |",
        "| b | -1.0000 | `--------------------` |",
        "",
        "## How it was made",
        "",
        "| task | metric | protocol | dev | test | version |",
        "| --- | --- | --- | ---: | ---: | --- |",
        "| add | exact_match | ours | 4 | 8 | x |",
        "",
        "EvoGM, 16 evaluations, seed 3, float32 on cpu (2 threads), 12 s of evaluation. "
        "torch 2.13.0, evox-evogm 0.1.0.",
        "",
        "`adapter/` is the merge as one LoRA adapter. Loaded with plain peft, it equals the sum of "
        "the experts within 1.0e-08 (relative).",
        "",
        "## Words",
        "",
        "- **expert**: One of the fine-tuned models that are merged, as a LoRA or whole.",
        "- **coefficient**: How much of what an expert has learnt is added to the base. 0 is "
        "nothing, 1 is the expert as it was trained, and below 0 it is taken away.",
        "- **dev, test**: Questions that score merges. The search sees those of dev and fits the "
        "merge to them. Those of test are kept for the table, so that they show what the merge "
        "does with questions it has not seen.",
        "- **evaluation**: Scoring one merge on all dev questions.",
        "- **average**: All experts with the same coefficient, 1 divided by their number.",
        "- **standard error**: By how much a score would typically differ on other questions of "
        "the same kind.",
        "- **beyond chance**: A lead that luck with the questions would give in less than 5 % of "
        "cases.",
    ]


def test_the_report_says_what_pruning_saved_what_was_regressed_and_that_there_is_no_adapter():
    text = report_markdown(result({"a": 0.0}, full_evaluations=12.25, regmean=True, adapter=None))
    assert "16 evaluations (some pruned: as much as 12.2 full ones), seed 3" in text
    assert "Of the experts regressed on their tasks: 1 for each is the RegMean merge.\n\n|" in text
    assert "| a | +0.0000 | `` |" in text
    assert "adapter" not in text


def row(name, kind, dev, test):
    return {"name": name, "kind": kind, "dev": {"add": dev}, "test": {"add": test}}


RECOMMENDED = (
    "SurrogateEvoGM is the recommended merge, which need not have the best observed dev score."
)


@pytest.mark.parametrize(
    ("dev", "test", "remarks"),
    [
        (0.6, 0.6, []),
        (0.4, 0.6, ["It is below the best single expert on dev (a, .500)."]),
        (
            0.4,
            0.2,
            [
                "It is below the best single expert on dev (a, .500) "
                "and on test (expert base, .300)."
            ],
        ),
        (float("nan"), 0.4999, []),
    ],
)
def test_a_reader_learns_which_merge_it_is_and_whether_an_expert_is_better(dev, test, remarks):
    rows = [
        row("base", "base", 0.9, 0.9),
        row("a", "expert", 0.5, 0.1),
        row("base", "expert", 0.4, 0.3),
        row("failed", "expert", float("nan"), float("nan")),
        row("average", "average", 0.9, 0.9),
        row("SurrogateEvoGM", "merge", dev, test),
    ]
    expected = [RECOMMENDED, *remarks]
    assert remarks_on_merge({"scores": rows}) == expected
    report = report_markdown(result({"a": 1.0}, algorithm="SurrogateEvoGM", scores=rows))
    for line in expected:
        assert line in report


def test_experts_that_are_level_as_the_best_are_named_together():
    rows = [row(name, "expert", 0.5, 0.1) for name in "abc"]
    rows.append(row("SurrogateEvoGM", "merge", 0.4, 0.6))
    best = "It is below the best single expert on dev"
    assert remarks_on_merge({"scores": rows})[1] == f"{best} (a, b and c, .500 each)."
    assert remarks_on_merge({"scores": rows[1:]})[1] == f"{best} (b and c, .500 each)."
    rows.insert(0, row("d", "expert", 0.5001, 0.1))  # which the table shows as .500 too
    assert remarks_on_merge({"scores": rows})[1] == f"{best} (d and 3 others, .500 each)."


def test_one_thread_and_one_evaluation_have_no_plural():
    text = report_markdown(result({"a": 1.0}, threads=1, evaluations=1, full_evaluations=1.0))
    assert "EvoGM, 1 evaluation, seed 3, float32 on cpu (1 thread)," in text
    card = model_card(result({"a": 1.0}), "org/model", Path())
    assert "a weighted sum of 1 LoRA expert of one base model" in card


NAME = "a\x1b[31m|`x`\u202e\n&lt; https://evil.org www.evil.org !me {{ 7 * 7 }} [red]"
SHOWN = "a [31m|`x` &lt; https://evil.org www.evil.org !me {{ 7 * 7 }} [red]"
ESCAPED = (
    r"a [31m\|\`x\` \&lt; https\://evil.org www\.evil.org !me {{ 7 * 7 }} [red]"  # as Markdown
)


@pytest.mark.parametrize("console", [{}, {"force_terminal": True, "color_system": "truecolor"}])
def test_a_name_is_shown_without_what_would_steer_a_terminal_or_mark_it_up(console):
    assert sanitize(NAME) == SHOWN
    rows = [{**row, "name": NAME} for row in ROWS]
    assert printed(rows, width=120, **console)[3].startswith(f"{SHOWN}  .250 / .500")
    renamed = [{**row, "dev": {NAME: 1.0}, "test": {NAME: 1.0}} for row in ROWS]
    text = " ".join(" ".join(printed(renamed, width=200)).split())
    assert "https://evil.org" in text and "[red]" in text and "\x1b" not in text


def test_no_name_is_a_link_an_entity_or_a_cell_of_the_report_and_of_the_card():
    task = {"metric": "exact_match", "protocol": "ours", "dev": 4, "test": 8, "version": NAME}
    rows = [{"name": NAME, "kind": "expert", "dev": {NAME: 1.0}, "test": {NAME: 1.0}}]
    changes = {"tasks": {NAME: task}, "scores": rows}
    report = report_markdown(result({NAME: 1.0}, **changes))
    assert f"| {ESCAPED} | +1.0000 |" in report
    assert f"| model | {ESCAPED} | mean |" in report
    assert f"| {ESCAPED} | exact_match | ours | 4 | 8 | {ESCAPED} |" in report
    card = model_card(result({NAME: 1.0}, **changes), NAME, Path())
    last = ESCAPED.rpartition("/")[2]  # of what is no hub id only the last part is shown
    assert f"of one base model, {last}.\n" in card
    assert f"| {ESCAPED} | +1.0000 |" in card and f"| model | {ESCAPED} | mean |" in card
    for text in (report, card):
        assert "\x1b" not in text and "\u202e" not in text and NAME not in text


def test_markup_in_a_name_does_not_reach_the_report():
    text = report_markdown(result({"a|b": 0.5, "<script>": -1.0}))
    assert "| a\\|b | +0.5000 |" in text and "| \\<script> | -1.0000 |" in text


@pytest.mark.parametrize(
    ("base", "base_model"),
    [("org/model", "org/model"), ("/home/me/model", None), ("model", None), ("a\n---\nb/c", None)],
)
def test_the_card_names_the_base_in_its_metadata_where_the_hub_can_have_it(base, base_model):
    card = model_card(result({"a": 0.5, "b": -1.0}), base, Path())
    _, metadata, text = card.split("---\n", 2)
    found = yaml.safe_load(metadata)
    assert found.get("base_model") == base_model and found["library_name"] == "peft"
    assert {"lora", "merge", "evogm"} <= set(found["tags"])
    assert "| a | +0.5000 |\n| b | -1.0000 |" in text
    assert "| EvoGM | .750 / .125 | .500 / -.250 | .625 / -.062 |" in text


@pytest.mark.parametrize("here", ["settings", "process"])
def test_a_base_in_a_local_folder_is_not_named_as_one_on_the_hub(tmp_path, monkeypatch, here):
    (tmp_path / here / "mine" / "base").mkdir(parents=True)
    (tmp_path / "process").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "process")
    card = model_card(result({"a": 1.0}), "mine/base", tmp_path / "settings")
    assert "base_model" not in yaml.safe_load(card.split("---\n", 2)[1])
    assert "of one base model, base." in card
