"""The protocol of `benchmarks/compare.py`: budgets, what is kept, and how it is read again."""

import csv
import json

import pytest
import torch
from compare import Case, Recorder, Spent, best_rows, cases_of
from compare_report import corrected_tests, holm, mean_ranks, print_changes, print_control, read_runs
from evox.core import Problem
from small_level import make_task

from evox_evogm.problems import Racing


class Asking(Problem):
    """Scores the first coordinate, which is also the share of ten outcomes that are asked."""

    def __init__(self, racing=None):
        super().__init__()
        self.racing = racing

    def evaluate(self, pop):
        asked = torch.arange(10) < (10 * pop[:, :1]).round()
        outcomes = torch.where(asked, 1.0, torch.nan) if self.racing else torch.ones(len(pop), 10)
        return torch.cat([pop[:, :1], outcomes], 1)


def points(*values):
    return torch.tensor(values)[:, None]


def test_the_last_population_is_cut_where_the_budget_is_spent():
    recorder = Recorder(Asking(), 5, outcomes=False)
    assert recorder.evaluate(points(0.1, 0.2, 0.3)).tolist() == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(Spent):
        recorder.evaluate(points(0.9, 0.5, 0.7))
    assert [(row.spent, round(row.score, 1)) for row in recorder.rows] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.9), (5, 0.5)]
    torch.testing.assert_close(best_rows(recorder.rows, 2), points(0.9, 0.5))


def test_with_racing_the_share_of_examples_that_was_asked_is_spent():
    recorder = Recorder(Asking(Racing()), 2, outcomes=True)
    recorder.evaluate(points(1.0, 0.3))
    with pytest.raises(Spent):
        recorder.evaluate(points(0.4, 0.2, 0.5))
    assert [round(row.spent, 3) for row in recorder.rows] == [1.0, 1.3, 1.7, 1.9]


def test_a_basis_is_applied_before_points_are_evaluated_and_kept():
    recorder = Recorder(Asking(), 5, outcomes=True)
    recorder.basis = torch.tensor([[0.5]])
    assert recorder.evaluate(points(0.8)).shape == (1, 11)
    assert recorder.rows[0].point == pytest.approx([0.4])


def test_files_are_read_as_the_best_score_after_every_evaluation_that_was_spent(tmp_path):
    for seed in (0, 100):  # seeds from 100 on were for trying things out
        (tmp_path / f"A_seed{seed}.json").write_text(json.dumps({"method": "A", "seed": seed}))
        with (tmp_path / f"A_seed{seed}.csv").open("w", newline="") as file:
            rows = [["spent", "score", "seconds"], [1, 0.2, 5], [1.25, 0.1, 6], [2.25, 0.4, 7], [3, "-inf", 8]]
            csv.writer(file).writerows(rows)
    (run,) = read_runs(tmp_path)["A"]
    assert run.best.tolist() == [0.2, 0.2, 0.4] and run.seconds.tolist() == [5, 6, 8]


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_never_decreases():
    assert holm({"a": 0.03, "b": 0.01, "c": 0.02}) == pytest.approx({"b": 0.03, "c": 0.04, "a": 0.04})
    assert holm({"a": 0.9, "b": 0.6}) == {"b": 1.0, "a": 1.0}


class Result:
    def __init__(self, seed, dev):
        self.result = {"seed": seed, "dev": 0.0}  # of the answer, which need not be the best
        self.best = [0.0, dev]


def test_ranks_are_means_over_the_seeds_that_all_have_and_equals_share():
    pytest.importorskip("scipy")
    runs = {"a": [Result(0, 0.5), Result(1, 0.3), Result(2, 0.9)], "b": [Result(0, 0.4), Result(1, 0.3)]}
    assert mean_ranks(runs, "dev") == {"a": (1 + 1.5) / 2, "b": (2 + 1.5) / 2}


def test_without_a_seed_that_all_have_there_are_no_ranks():
    pytest.importorskip("scipy")
    assert mean_ranks({"a": [Result(0, 0.5)], "b": [Result(1, 0.4)]}, "dev") == {}


def test_what_never_varies_differs_or_does_not():
    pytest.importorskip("scipy")
    runs = {name: [Result(seed, value) for seed in range(2)] for name, value in {"a": 0.5, "b": 0.5, "c": 0.4}.items()}
    assert corrected_tests(runs, "a", "dev") == {"b": 1.0, "c": 0.0}


def test_cases_of_other_settings_have_other_files():
    settings = ({}, {"budget": 4}, {"pop_size": 10}, {"control": "random"}, {"own_questions": True})
    assert len({Case("small", "A", 0, n=2, **more).path for more in settings}) == len(settings)


def test_a_draw_of_questions_is_always_the_same_other_draws_differ_and_no_dev_question_is_in_test():
    def asked(split, draw):
        return {example.prompt for example in make_task("R", split, 13, draw).examples}

    assert asked("dev", 3) == asked("dev", 3)
    assert len({frozenset(asked("dev", draw)) for draw in (None, 3, 4)}) == 3
    assert not asked("dev", 3) & (asked("test", 3) | asked("test", 4))


def test_welch_is_scipys_and_leaves_out_what_ran_once():
    stats = pytest.importorskip("scipy.stats")
    ours, theirs = [0.5, 0.6, 0.8], [0.1, 0.3, 0.2, 0.2]
    runs = {
        "ours": [Result(i, value) for i, value in enumerate(ours)],
        "theirs": [Result(i, value) for i, value in enumerate(theirs)],
        "once": [Result(0, 0.5)],
    }
    p_value = stats.ttest_ind(ours, theirs, equal_var=False).pvalue
    assert corrected_tests(runs, "ours", "dev") == {"theirs": pytest.approx(p_value)}


def test_the_paired_test_is_scipys_on_the_seeds_that_both_have():
    stats = pytest.importorskip("scipy.stats")
    runs = {
        "ours": [Result(i, value) for i, value in enumerate((0.5, 0.6, 0.8))],
        "theirs": [Result(i, value) for i, value in ((1, 0.3), (2, 0.7), (3, 0.9))],
    }
    p_value = stats.ttest_rel([0.6, 0.8], [0.3, 0.7]).pvalue
    assert corrected_tests(runs, "ours", "dev", paired=True) == {"theirs": pytest.approx(p_value)}


def test_a_change_is_shown_beside_what_it_changes_on_the_seeds_that_both_have(capsys):
    pytest.importorskip("scipy")
    runs = {
        "EvoGM": [Result(i, value) for i, value in enumerate((0.5, 0.6, 0.8))],
        "no generators": [Result(i, value) for i, value in ((1, 0.3), (2, 0.7))],
    }
    for mine in runs.values():
        for run in mine:
            run.result["test"] = run.best[-1] - 0.1
    print_changes(runs, ["no generators"], "EvoGM", "part")
    row = capsys.readouterr().out.strip().splitlines()[-1]
    assert row.startswith("| no generators | 2 | 0.500 | 0.700 | 0.400 | 0.600 |")


def test_a_control_improves_only_where_its_gain_is_more_than_chance(capsys):
    runs = {"A": [Result(0, 0), Result(1, 0)], "B": [Result(0, 0), Result(1, 0)]}
    for name, scores in {"A": (0.30, 0.34), "B": (0.45, 0.47)}.items():
        for run, score in zip(runs[name], scores, strict=True):
            run.result["test"] = score
    print_control(runs, 0.3)
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert "A does not improve on test: +0.020" in first and "B IMPROVES over the base on test: +0.160" in second


def test_what_is_not_a_method_is_refused_with_the_list():
    class Arguments:
        methods, group, n, budget, pop_size, threads, level, seeds, first_seed = ["EvoGN"], "search", 2, 4, 2, 1, "small", 1, 0
        own_questions = False

    with pytest.raises(SystemExit, match="methods: expected some of EvoGM, .*found 'EvoGN'"):
        cases_of(Arguments)
    Arguments.methods = ["EvoGM", "random"]
    assert cases_of(Arguments) == [Case("small", name, 0, n=2, budget=4, pop_size=2) for name in ("EvoGM", "random")]
