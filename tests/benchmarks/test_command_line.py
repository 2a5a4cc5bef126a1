"""What `python -m benchmarks.compare` runs."""

import pytest

from benchmarks.compare.__main__ import cases_of, parse_arguments
from benchmarks.compare.cases import Case, default_pop_size
from benchmarks.compare.methods import CONTROLLED, METHODS


def cases(*arguments):
    return cases_of(parse_arguments(["run", "--n", "2", "--seeds", "1", *map(str, arguments)]))


def test_cases_are_those_of_the_named_methods_once_each():
    found = cases("--budget", 20, "--methods", "SurrogateEvoGM", "random", "random")
    expected = []
    for name in ("SurrogateEvoGM", "random"):
        expected.append(Case("synthetic", name, 0, n=2, budget=20))
    assert found == expected


def test_without_names_a_group_runs():
    searches = [name for name, method in METHODS.items() if method.group == "search"]
    assert [case.method for case in cases()] == searches
    controls = cases("--group", "controls")
    assert [case.method for case in controls] == [*CONTROLLED, *CONTROLLED]
    assert {case.control for case in controls} == {"random", "shuffled"}


def test_a_search_is_around_the_regmean_merge_of_the_experts_own_tasks_or_another_one():
    kinds = []
    for arguments in ((), ("--regmean",), ("--regmean", "prompts")):
        (case,) = cases(*arguments, "--methods", "random")
        kinds.append(case.regmean)
    assert kinds == ["", "tasks", "prompts"]


def test_with_experts_kept_beside_regressed_ones_populations_hold_twice_as_many():
    (case,) = cases("--regmean", "prompts", "--keep-experts", "--methods", "random")
    assert (case.keep_experts, case.dimension) == (True, 4)
    beside = parse_arguments(["run", "--n", "20", "--regmean", "prompts", "--keep-experts"])
    assert beside.pop_size == default_pop_size(40) == 42


def test_seeds_come_first():
    found = cases("--seeds", 2, "--first-seed", 5, "--methods", "random", "CMA-ES")
    names = [(case.seed, case.method) for case in found]
    assert names == [(5, "random"), (5, "CMA-ES"), (6, "random"), (6, "CMA-ES")]


def test_defaults_are_those_of_the_suite():
    synthetic, smollm2 = parse_arguments(["run"]), parse_arguments(["run", "--suite", "smollm2"])
    assert (synthetic.n, synthetic.seeds, synthetic.processes, synthetic.threads) == (10, 20, 2, 1)
    assert (smollm2.n, smollm2.seeds, smollm2.processes, smollm2.threads) == (8, 3, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--methods", "EvoGN"],
            "methods: expected some of 'SurrogateEvoGM', .*found 'EvoGN'",
        ),
        (
            ["--pop-size", 2, "--methods", "SurrogateEvoGM", "random"],
            "pop-size: expected methods without a population of their own, found 'SurrogateEvoGM'",
        ),
        (
            ["--budget", 20, "--methods", "random", "R 3"],
            "budget: expected methods without a budget of their own, found 'R 3'",
        ),
        (
            ["--budget", 19, "--methods", "SurrogateEvoGM", "random"],
            "budget: expected at least one population of 'random', 20, found 19",
        ),
    ],
)
def test_what_cannot_run_is_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        cases(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "smollm2", "--resampled-dev"], "smollm2 has one set of questions"),
        (["--suite", "smollm2", "--n", "9"], "--n: expected at most 8, as many as there are"),
        (["--seeds", "0"], "expected at least 1, found 0"),
        (["--keep-experts"], "--keep-experts: expected --regmean beside it, found none"),
        (["--limit", "--regmean", "prompts"], "--limit: expected no controls and no prompts"),
    ],
)
def test_wrong_options_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit):
        parse_arguments(["run", *arguments])
    assert message in capsys.readouterr().err
