"""How runs are read again, and the statistics by which methods are told apart."""

import csv
import json

import pytest

from benchmarks.compare.runs import read_runs
from benchmarks.compare.significance import corrected_tests, holm, mean_ranks

stats = pytest.importorskip("scipy.stats")


@pytest.fixture
def runs_with(tmp_path, write_runs):
    """A function that makes runs of methods with these final scores on dev, None for no run."""

    def make(**scores):
        for method, mine in scores.items():
            write_runs(tmp_path, method, mine)
        return read_runs(tmp_path)

    return make


def test_files_are_read_as_the_best_score_after_every_full_evaluation(tmp_path):
    rows = [
        ["used", "score", "seconds", "coefficient 0"],
        [1, 0.2, 5, 0],
        [1.25, 0.1, 6, 0],
        [2.25, 0.4, 7, 0],
        [3, "-inf", 8, 0],
    ]
    for seed in (0, 100):  # seeds from 100 on were for trying things out
        result = {"method": "A", "seed": seed, "test": 0.5, "test by task": {"R": 0.5}}
        (tmp_path / f"A_seed{seed}.json").write_text(json.dumps(result))
        with (tmp_path / f"A_seed{seed}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    runs = read_runs(tmp_path)
    assert runs.results.index.tolist() == [("A", 0)]
    assert runs.curves["best"].tolist() == [0.2, 0.2, 0.4]
    assert runs.curves["seconds"].tolist() == [5, 6, 8]


def test_a_folder_without_runs_has_none(tmp_path):
    assert read_runs(tmp_path) is None


def test_runs_of_some_methods_are_in_the_order_of_these(runs_with):
    runs = runs_with(A=[0.5], B=[0.4], C=[0.3])
    assert runs.of(["C", "missing", "A"]).methods == ["C", "A"]
    groups = {"B": "search", "A": "search", "C": "parts"}
    assert runs.of_group(groups, "search").methods == ["B", "A"]
    assert runs.of([]).methods == []


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_never_decreases():
    corrected = holm({"a": 0.03, "b": 0.01, "c": 0.02})
    assert corrected == pytest.approx({"b": 0.03, "c": 0.04, "a": 0.04})
    assert holm({"a": 0.9, "b": 0.6}) == {"b": 1.0, "a": 1.0}


def test_ranks_are_means_over_the_seeds_that_all_have_and_equals_share(runs_with):
    ranks = mean_ranks(runs_with(a=[0.5, 0.3, 0.9], b=[0.4, 0.3, None]), "dev")
    assert ranks.to_dict() == {"a": (1 + 1.5) / 2, "b": (2 + 1.5) / 2}


def test_without_a_seed_that_all_have_there_are_no_ranks(runs_with):
    assert mean_ranks(runs_with(a=[0.5, None], b=[None, 0.4]), "dev").empty


def test_what_never_varies_differs_or_does_not(runs_with):
    runs = runs_with(a=[0.5, 0.5], b=[0.5, 0.5], c=[0.4, 0.4])
    assert corrected_tests(runs, "a", "dev", paired=False) == {"b": 1.0, "c": 0.0}


def test_welch_is_scipys_and_leaves_out_what_ran_once(runs_with):
    ours, theirs = [0.5, 0.6, 0.8], [0.1, 0.3, 0.2, 0.2]
    runs = runs_with(ours=ours, theirs=theirs, once=[0.5])
    p_value = stats.ttest_ind(ours, theirs, equal_var=False).pvalue
    found = corrected_tests(runs, "ours", "dev", paired=False)
    assert found == {"theirs": pytest.approx(p_value)}


def test_the_paired_test_is_scipys_on_the_seeds_that_both_have(runs_with):
    runs = runs_with(ours=[0.5, 0.6, 0.8], theirs=[None, 0.3, 0.7, 0.9])
    p_value = stats.ttest_rel([0.6, 0.8], [0.3, 0.7]).pvalue
    found = corrected_tests(runs, "ours", "dev", paired=True)
    assert found == {"theirs": pytest.approx(p_value)}
