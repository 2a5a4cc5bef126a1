"""The tables and plots that are made of runs."""

import json
import re
from xml.etree import ElementTree

import pytest

from benchmarks.compare.cases import Case
from benchmarks.compare.methods import METHODS
from benchmarks.compare.report import print_report, write_svg
from benchmarks.compare.runs import read_runs
from benchmarks.compare.search import commit
from benchmarks.compare.tables import print_changes, print_control

stats = pytest.importorskip("scipy.stats")
pytest.importorskip("matplotlib")

GROUPS = {name: method.group for name, method in METHODS.items()}
SHOWN = (
    "SurrogateEvoGM",
    "SurrogateEvoGM scores",
    "EvoGM",
    "CMA-ES",
    "racing",
    "no added noise",
    "one round",
    "lr 1e-3",
)
HEADERS = (
    "| method | seeds | dev at 1 |",
    "| method, test | peak | mean |",
    "| part | seeds |",
    "| change | seeds |",
    "| setting | seeds |",
    "| design | seeds |",
    "| test, final choice |",
    "paired p dev",
)


@pytest.mark.slow
def test_the_report_has_every_table_and_plot(tmp_path, run_on_peak, capsys):
    for seed in range(2):
        for method in SHOWN:
            run_on_peak(Case("synthetic", method, seed, n=2, budget=25))
        for method in SHOWN[:2]:
            run_on_peak(Case("synthetic", method, seed, n=2, budget=25, resampled_dev=True))
    print_report(tmp_path / "synthetic", GROUPS)
    shown = capsys.readouterr().out
    for header in HEADERS:
        assert header in shown, header
    _, on_scores = shown.split("With the same information for all, scores alone:", 1)
    on_scores, _ = on_scores.split("| method | evaluations |", 1)
    assert "| SurrogateEvoGM scores | 2 |" in on_scores
    assert "| CMA-ES | 2 |" in on_scores
    assert "| SurrogateEvoGM | 2 |" not in on_scores
    assert "| SurrogateEvoGM | 25.0 |" in shown
    assert f"| float32 | {commit()} |" in shown
    plots = {path.name for path in (tmp_path / "synthetic" / "report").iterdir()}
    assert {"n2_25_search.svg", "n2_25_ablations_final.svg"} <= plots


def test_numbers_of_experts_are_compared_under_one_protocol(tmp_path, write_runs, capsys):
    for n in (2, 4, 7):
        more_tasks = {"another": 0.0} if n == 7 else {}
        folder = tmp_path / f"n{n}_160_resampled"
        write_runs(folder, "SurrogateEvoGM", [n / 10, n / 10], **more_tasks)
    write_runs(tmp_path / "n7_160", "SurrogateEvoGM", [0.9, 0.9])
    print_report(tmp_path, GROUPS)
    _, *tables = capsys.readouterr().out.split("| experts, test")
    assert len(tables) == 1
    assert "on 1 tasks (160_resampled) | 2 | 4 | 7 |" in tables[0]
    assert "| SurrogateEvoGM | 0.200 | 0.400 | 0.700 |" in tables[0]
    plots = [path.name for path in (tmp_path / "report").glob("expert_counts*")]
    assert plots == ["expert_counts_160_resampled.svg"]


def test_fewer_evaluations_stand_beside_more_and_are_not_tested_against_them(
    tmp_path, write_runs, capsys
):
    write_runs(tmp_path / "n10_40_resampled", "SurrogateEvoGM", [0.5, 0.7], evaluations=40)
    folder = tmp_path / "n10_160_resampled"
    write_runs(folder, "EvoGM", [0.2, 0.4], evaluations=160)
    write_runs(folder, "R 5", [0.3, 0.6], evaluations=400)
    write_runs(folder, "lr 1e-3", [0.3, 0.6], evaluations=160)
    print_report(tmp_path, GROUPS)
    shown = capsys.readouterr().out
    budgets = (
        "| SurrogateEvoGM | 40 | 2 | 0.600 ± 0.141 | 0.600 ± 0.141 |\n"
        "| EvoGM | 160 | 2 | 0.300 ± 0.141 |"
    )
    assert budgets in shown
    assert "| R 5 | 2 | 400 | 0.450 | 0.300 | 0.450 | 0.300 |  |  |" in shown
    assert "| lr 1e-3 | 2 | 160 | 0.450 | 0.300 | 0.450 | 0.300 | 0.2 | 0.2 |" in shown


def test_a_lora_trained_on_dev_has_a_row_but_not_among_those_that_get_scores_alone(
    tmp_path, write_runs, capsys
):
    for method in ("SurrogateEvoGM", "SurrogateEvoGM scores", "LoRA on dev"):
        write_runs(tmp_path / "n10_160_resampled", method, [0.5, 0.7])
    print_report(tmp_path, GROUPS)
    shown, on_scores = capsys.readouterr().out.split("scores alone:", 1)
    on_scores, _ = on_scores.split("| method | evaluations |", 1)
    assert "| LoRA on dev | 2 |" in shown
    assert "| LoRA on dev | 2 |" not in on_scores


def test_a_control_is_judged_for_every_method_that_ran_on_it(tmp_path, write_runs, capsys):
    (tmp_path / "n10_static").mkdir()
    base = {"method": "base", "setting": "", "evaluations": 1, "dev": 0.3, "test": 0.3}
    base |= {"seconds": 1.0, "test by task": {"peak": 0.3}}
    (tmp_path / "n10_static" / "base.json").write_text(json.dumps(base))
    for method in ("CMA-ES", "GradientSearch"):
        write_runs(tmp_path / "n10_160_random", method, [0.2, 0.25])
    print_report(tmp_path, GROUPS)
    shown = capsys.readouterr().out
    assert "CMA-ES does not improve over base" in shown
    assert "GradientSearch does not improve over base" in shown


def test_what_cannot_be_compared_is_said(tmp_path, write_runs, capsys):
    write_runs(tmp_path / "n10_160", "R 3", [0.3, 0.4])
    write_runs(tmp_path / "n10_160_random_resampled", "SurrogateEvoGM", [0.3, 0.4])
    write_runs(tmp_path / "n10_160_shuffled", "SurrogateEvoGM", [0.3, 0.4])
    print_report(tmp_path, GROUPS)
    shown = capsys.readouterr().out
    assert "R 3: not compared, as EvoGM has not run here." in shown
    unknown = "Whether a control improves is not known: "
    assert unknown + "the base was scored on other questions." in shown
    command = "python -m benchmarks.static_merges --methods 'base' 'Model Soup'."
    assert unknown + f"run {command}" in shown


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(
        SystemExit, match="expected the files of benchmarks.compare run, found none"
    ):
        print_report(tmp_path, {})


@pytest.mark.parametrize("paired", [False, True])
def test_a_change_is_shown_beside_what_it_changes_on_the_seeds_that_both_have(
    tmp_path, write_runs, capsys, paired
):
    write_runs(tmp_path, "SurrogateEvoGM", [0.4, 0.5, 0.7], dev=[0.5, 0.6, 0.8])
    write_runs(tmp_path, "racing", [None, 0.2, 0.6], dev=[None, 0.3, 0.7])
    runs = read_runs(tmp_path)
    print_changes(runs, ["racing"], "SurrogateEvoGM", "part", paired=paired)
    header, _, row = capsys.readouterr().out.strip().splitlines()
    assert row.startswith("| racing | 2 | 1 | 0.500 | 0.700 | 0.400 | 0.600 |")
    ours, theirs = [0.6, 0.8], [0.3, 0.7]
    if paired:
        p_value = stats.ttest_rel(ours, theirs).pvalue
    else:
        p_value = stats.ttest_ind(ours, theirs, equal_var=False).pvalue
    assert f"| {p_value:.1g} |" in row
    assert ("paired p dev" in header) == paired


def test_a_control_improves_only_where_its_gain_is_more_than_chance(tmp_path, write_runs, capsys):
    write_runs(tmp_path, "A", [0.30, 0.34])
    write_runs(tmp_path, "B", [0.45, 0.47])
    write_runs(tmp_path, "C", [0.45])
    print_control(read_runs(tmp_path), {"base": 0.25, "Model Soup": 0.3})
    first, second, third = capsys.readouterr().out.strip().split("\n\n")
    assert "A does not improve over Model Soup on test: 0.020" in first
    assert "B IMPROVES over Model Soup on test: 0.160" in second
    assert "C ran once" in third
    one = stats.ttest_1samp([0.15, 0.17], 0, alternative="greater").pvalue
    assert f"p {2 * one:.2g}." in second  # Holm, of two


def test_the_plot_of_a_setting_is_a_small_svg_with_text_that_names_its_lines(tmp_path, write_runs):
    write_runs(tmp_path, "EvoGM", [0.3, 0.4], evaluations=160)
    write_runs(tmp_path, "CMA-ES", [0.3, 0.5], evaluations=160)
    path = tmp_path / "plots" / "plot.svg"
    write_svg(tmp_path, ["EvoGM", "CMA-ES", "PSO"], path)
    text = path.read_text()
    assert len(text) < 100_000
    assert "<image" not in text
    words = [element.text for element in ElementTree.fromstring(text).iter() if element.text]
    assert {"EvoGM", "CMA-ES", "evaluations", "best dev score"} <= set(words)
    assert "PSO" not in words
    before = text
    write_svg(tmp_path, ["EvoGM", "CMA-ES"], path)
    assert path.read_text() == before  # the same file from the same data


def test_a_plot_of_nothing_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=re.escape(f"{tmp_path}: expected runs of EvoGM")):
        write_svg(tmp_path, ["EvoGM"], tmp_path / "plot.svg")
