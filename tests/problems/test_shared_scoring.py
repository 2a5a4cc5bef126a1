"""Merges scored by several ranks: what one process finds, whoever scores what."""

import time

import pytest
import torch
from builders import build_model, build_tokenizer, history
from evox.algorithms import PSO
from evox.workflows import StdWorkflow
from ranks import on_ranks

from evox_evogm import ResumableSearch
from evox_evogm.problems import (
    DistributedProblem,
    Example,
    LoRAMergeProblem,
    Racing,
    Task,
    fitness_tasks,
    portions,
)
from evox_evogm.problems.failures import AllFailed

pytestmark = pytest.mark.language_model

CHOICES = (("A", "yes"), ("B", "no"))
SUMS = tuple(Example(f"sum {i}", f"{i} + {i * i} =", str(i + i * i)) for i in range(9))
PICKS = tuple(Example(f"pick {i}", f"pick {i}" * (i + 1), "AB"[i % 2], CHOICES) for i in range(6))
TASKS = [
    Task("gold", "1", "gold_log_probability", SUMS),
    Task("choices", "1", "choice_likelihood", PICKS),
    Task("exact", "1", "exact_match", SUMS[:4], match="contains", max_new_tokens=4),
]
POP = torch.tensor([[0.5, 0.5], [1.0, -0.5], [0.0, 0.3]])
MERGED = {"gold": "merged", "choices": "unmerged", "exact": "merged"}


@pytest.fixture
def folders(make_adapter):
    return [make_adapter("first", seed=1), make_adapter("second", seed=2)]


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(portions, "LEAST_TOKENS", 8)


@pytest.fixture(autouse=True)
def one_thread():
    """The arithmetic of the ranks, which have one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_problem(folders, tasks=TASKS, **settings):
    settings = {"objectives": "outcomes", "mode": "unmerged", **settings}
    return LoRAMergeProblem(build_model(), folders, tasks, tokenizer=build_tokenizer(), **settings)


def found_on_ranks(folders, tasks=TASKS, **settings):
    """The fitness of two populations, and all scores and margins as the problem reports them."""
    problem = make_problem(folders, tasks, **settings)
    reported = []
    problem.on_evaluations = reported.extend
    shared = DistributedProblem(problem)
    fitness = [shared.evaluate(POP).tolist(), shared.evaluate(POP.flip(1)).tolist()]
    tables = []
    for evaluation in reported:
        record = evaluation.as_record()
        tables.append({name: record[name] for name in ("examples", "margins") if name in record})
    return fitness, tables, problem.budget_used


def check_like_one_process(found, folders, tasks=TASKS, **settings):
    fitness, tables, budget_used = found
    plain = make_problem(folders, tasks, **settings)
    reported = []
    plain.on_evaluations = reported.extend
    expected = [plain.evaluate(POP), plain.evaluate(POP.flip(1))]
    torch.testing.assert_close(torch.tensor(fitness), torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert len(tables) == len(reported) and budget_used == plain.budget_used
    for table, evaluation in zip(tables, reported, strict=True):
        for task in tasks:
            values = torch.tensor(table["examples"][task.name])
            wanted = torch.tensor(evaluation.scores[task.name])
            if task.metric == "gold_log_probability":
                torch.testing.assert_close(values, wanted, atol=1e-5, rtol=1e-4)
            else:
                assert values.tolist() == wanted.tolist()


@pytest.mark.parametrize("mode", ["unmerged", pytest.param(MERGED, marks=pytest.mark.slow)])
def test_two_ranks_find_what_one_process_finds(folders, mode):
    found = on_ranks(2, lambda: found_on_ranks(folders, mode=mode))
    assert found[0] == found[1]
    check_like_one_process(found[0], folders, mode=mode)
    assert found_on_ranks(folders, mode=mode) == found[0]  # to the last bit, in one process


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_any_number_of_ranks_finds_the_same_to_the_last_bit(folders, ranks):
    alone = found_on_ranks(folders, mode=MERGED)
    assert on_ranks(ranks, lambda: found_on_ranks(folders, mode=MERGED)) == ranks * [alone]


@pytest.mark.slow
def test_a_race_on_ranks_prunes_what_it_prunes_in_one_process(folders):
    settings = {"objectives": "mean", "racing": Racing(rungs=(0.3, 0.6), confidence=0.6)}
    found = on_ranks(3, lambda: found_on_ranks(folders, TASKS[:2], **settings))
    assert found == 3 * [found[0]]
    problem = make_problem(folders, TASKS[:2], **settings)
    expected = [problem.evaluate(POP).tolist(), problem.evaluate(POP.flip(1)).tolist()]
    torch.testing.assert_close(torch.tensor(found[0][0]), torch.tensor(expected))
    assert found[0][2] == problem.budget_used < 6


@pytest.mark.slow
@pytest.mark.parametrize("minibatches", [1, 2])
def test_gradients_come_from_portions_too(folders, minibatches):
    settings = {"objectives": "gradients", "mode": "auto", "minibatches": minibatches}
    plain = make_problem(folders, TASKS[:2], **settings)
    shared = DistributedProblem(make_problem(folders, TASKS[:2], **settings))
    for pop in (POP, POP.flip(1)):
        found, expected = shared.evaluate(pop), plain.evaluate(pop)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3, equal_nan=True)


@pytest.mark.slow
def test_functions_are_called_once_for_each_merge(folders, tmp_path):
    def length(merge):
        with (tmp_path / "calls").open("a") as calls:
            calls.write("x")
        return sum(merge.coefficients)

    function, _ = fitness_tasks(length, name="length", sizes={"dev": 1, "test": 1})
    tasks = [TASKS[0], function]

    def evaluate():
        problem = make_problem(folders, tasks, objectives="tasks")
        return DistributedProblem(problem).evaluate(POP)[:, 1].tolist()

    expected = POP.sum(1).tolist()
    assert on_ranks(3, evaluate) == 3 * [pytest.approx(expected)]
    assert (tmp_path / "calls").read_text() == "xxx"


@pytest.mark.slow
def test_batches_and_modes_are_chosen_on_rank_0_for_all(folders):
    def evaluate():
        problem = make_problem(folders, mode="auto", batch_tokens="auto")
        DistributedProblem(problem).evaluate(POP)
        return problem.batch_sizes.as_setting(), dict(problem.modes)

    found = on_ranks(2, evaluate)
    assert found[0] == found[1]
    assert found[0][0] != 2048 and set(found[0][1]) == {"gold", "choices", "exact"}


@pytest.mark.slow
def test_a_rank_whose_memory_ends_goes_on_in_smaller_batches(folders):
    def evaluate(failing=True):
        problem = make_problem(folders)
        model, score = problem.language_model, problem.scorer.score_here

        def score_some(*arguments):
            if failing and torch.distributed.get_rank() == 1 and model.batch_tokens > 100:
                raise torch.OutOfMemoryError("no more")
            return score(*arguments)

        problem.scorer.score_here = score_some
        return DistributedProblem(problem).evaluate(POP).tolist()

    expected = torch.tensor(evaluate(failing=False))
    for found in on_ranks(2, evaluate):
        torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=1e-4)


def test_ranks_stay_in_step_when_one_never_has_memory(folders):
    def evaluate():
        problem = make_problem(folders, TASKS[:1], batch_tokens=8)
        model, score = problem.language_model, problem.scorer.score_here

        def score_some(*arguments):
            if torch.distributed.get_rank() == 1:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
            time.sleep(0.02)  # the other rank has its part
            return score(*arguments)

        problem.scorer.score_here = score_some
        with pytest.raises(AllFailed) as failed:
            DistributedProblem(problem).evaluate(POP)
        return str(failed.value), model.batch_tokens

    (reason, tokens), (other_reason, other_tokens) = on_ranks(2, evaluate)
    assert reason == other_reason and "RuntimeError: DefaultCPUAllocator: can't" in reason
    assert (tokens, other_tokens) == (8, 1)


def test_a_portion_that_cannot_be_scored_ends_the_evaluation_on_all_ranks(folders):
    def evaluate():
        problem = make_problem(folders, TASKS[:1])
        score = problem.scorer.score_here

        def score_some(pop, tasks, modes):
            if tasks[0].examples[0].id == "sum 0":
                raise ValueError("this question has no answer")
            return score(pop, tasks, modes)

        problem.scorer.score_here = score_some
        DistributedProblem(problem).evaluate(POP)

    assert on_ranks(2, evaluate) == 2 * ["ValueError: this question has no answer"]


def run_search(folders, folder, steps, broken_at=None):
    """Run a search without gradients, which a fork can make."""
    torch.manual_seed(6)
    bounds = torch.ones(2)
    problem = make_problem(folders, objectives="mean")
    if broken_at is not None:
        calls = []
        problem.on_evaluations = lambda found: calls.append(found) or 1 / (broken_at - len(calls))
    shared = DistributedProblem(problem)
    workflow = StdWorkflow(PSO(3, -bounds, bounds), shared, opt_direction="max")
    with ResumableSearch(workflow, folder) as search:
        search.run(steps)
    return workflow.algorithm.fit.tolist()


@pytest.mark.slow
def test_a_search_on_ranks_writes_scores_by_example_and_goes_on_in_one_process(folders, tmp_path):
    whole = run_search(folders, tmp_path / "whole", 4)
    stopped = on_ranks(2, lambda: run_search(folders, tmp_path / "cut", 4, broken_at=3))
    assert all("ZeroDivisionError" in error for error in stopped)
    assert len(history(tmp_path / "cut")) == 9
    assert run_search(folders, tmp_path / "cut", 4) == whole
    written = history(tmp_path / "cut")
    assert without_seconds(written) == without_seconds(history(tmp_path / "whole"))
    assert len(written[0]["examples"]["gold"]) == 9


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(3, 2), (1, 5), (5, 3)])
def test_a_search_goes_on_bit_for_bit_on_another_number_of_ranks(folders, tmp_path, before, after):
    whole = run_search(folders, tmp_path / "whole", 4)
    on_ranks(before, lambda: run_search(folders, tmp_path / "cut", 4, broken_at=3))
    found = on_ranks(after, lambda: run_search(folders, tmp_path / "cut", 4))
    assert found == after * [whole]
    assert without_seconds(history(tmp_path / "cut")) == without_seconds(
        history(tmp_path / "whole")
    )


def without_seconds(records):
    return [
        {name: value for name, value in record.items() if name != "seconds"} for record in records
    ]
