"""The same search on 1, 2 and 3 ranks as in one process, and a clear end when a rank dies."""

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from builders import history
from evox.algorithms import PSO
from evox.core import Problem
from evox.problems.numerical import Ackley
from evox.workflows import StdWorkflow
from ranks import on_ranks
from search_on_ranks import histories, merge_problem_with_failures, search

from evox_evogm import ResumableSearch
from evox_evogm.problems import DistributedProblem
from evox_evogm.problems.distributed import Reply, Share, check_same_points, join_replies
from evox_evogm.problems.failures import AllFailed

TESTS = Path(__file__).parents[1]
SCRIPT = TESTS / "search_on_ranks.py"


@pytest.fixture
def experts(make_adapter):
    make_adapter("first", seed=1)
    return make_adapter("second", seed=2).parent


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", **more}


def run(command):
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)


def torchrun(ranks, *command):
    """Run a script of Python on several ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return run([*launcher, "--nproc-per-node", str(ranks), *command])


@pytest.fixture
def one_thread():
    """The arithmetic of the ranks, which have one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "ranks", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_every_rank_has_the_history_of_one_process(ranks, tmp_path, experts, one_thread):
    out = tmp_path / "out.json"
    result = torchrun(ranks, SCRIPT, out, experts)
    assert result.returncode == 0, result.stderr[-3000:]
    expected = {**histories(experts), "plain workflow": search(Ackley(), 6)}
    for rank in range(ranks):
        found = json.loads(Path(f"{out}.{rank}").read_text())
        for case, expected_history in expected.items():
            assert found[case] == expected_history, case
        assert found["drawing"] == expected["seven"]
        assert "the first coordinate is too large" in found["failing"]
        if ranks > 1:
            check_messages(found, rank, ranks)


def check_messages(found, rank, ranks):
    """Only rank 0 has the point that cannot be evaluated; the other ranks name it."""
    if rank == 0:
        assert found["failing"].startswith("ValueError")
    else:
        expected = f"RuntimeError: rank 0 of {ranks} could not evaluate its share"
        assert found["failing"].startswith(expected)
    assert "expected the same seed on every rank" in found["other seed"]
    assert "enable_distributed left off" in found["split twice"]


def test_box_and_outcomes_are_the_problems():
    class Boxed(Ackley):
        box = torch.zeros(2), torch.ones(2)
        outcomes = torch.ones(3), torch.ones(3, dtype=torch.bool)

    problem = Boxed()
    spread = DistributedProblem(problem)
    assert spread.box is problem.box and spread.outcomes is problem.outcomes


@pytest.mark.slow
def test_the_ranks_that_are_left_say_that_one_has_died(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out = tmp_path / "out.json"
    group = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(3):
        process = subprocess.Popen(
            [sys.executable, SCRIPT, out, "die"],
            env=environment(RANK=str(rank), **group),
            stderr=subprocess.PIPE,
        )
        processes.append(process)
    processes[1].wait(timeout=120)
    died = time.monotonic()
    for process in processes:
        process.communicate(timeout=60)
    assert time.monotonic() - died < 60
    assert all(process.returncode != 0 for process in processes)
    for rank in (0, 2):
        message = Path(f"{out}.{rank}").read_text()
        assert f"RankLost: rank {rank} of 3 lost " in message
        assert "a rank has died or cannot be reached" in message


@pytest.mark.slow
def test_torchrun_ends_the_others_and_names_the_rank_that_died(tmp_path):
    started = time.monotonic()
    result = torchrun(2, SCRIPT, tmp_path / "out.json", "die")
    assert result.returncode != 0 and time.monotonic() - started < 60
    assert "Signal 9 (SIGKILL)" in result.stderr and "rank      : 1" in result.stderr


def test_a_population_with_missing_numbers_is_not_taken_for_another_one():
    points = torch.tensor([[1.0, torch.nan], [0.5, 2.0]])
    check_same_points(points, points.clone(), rank=1)


@pytest.mark.parametrize("other", [torch.zeros(2, 2), torch.ones(3, 2), torch.full((2, 2), 1.1)])
def test_another_population_is_refused(other):
    with pytest.raises(RuntimeError, match="rank 1 has other points than rank 0: expected the sa"):
        check_same_points(other, torch.ones(2, 2), rank=1)


def test_a_population_that_differs_by_rounding_is_the_same():
    check_same_points(torch.full((2, 2), 1.001), torch.ones(2, 2), rank=1)


def test_shares_are_joined_in_their_order_and_an_error_is_raised():
    first, second, third = [Share(torch.tensor([value])) for value in (1.0, 2.0, 3.0)]
    replies = [Reply({2: third}), Reply({}), Reply({0: first, 1: second})]
    assert join_replies(replies).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(
        RuntimeError, match="rank 1 of 2 could not evaluate its share of the population: OSError: x"
    ):
        join_replies([replies[0], Reply({}, error="OSError: x")])


def test_a_population_has_failed_only_if_every_share_has():
    share = Reply({1: Share(torch.tensor([1.0]))})
    failed = Reply({0: Share(torch.tensor([-torch.inf]), failure="first")})
    also_failed = Reply({1: Share(torch.tensor([-torch.inf, -torch.inf]), failure="second")})
    assert join_replies([failed, share]).tolist() == [-torch.inf, 1.0]
    message = "all 3 merges of a population failed: first$"
    with pytest.raises(AllFailed, match=message) as caught:
        join_replies([failed, also_failed, Reply({})])
    assert caught.value.fitness.tolist() == 3 * [-torch.inf]


def test_the_error_of_a_failed_population_can_be_pickled():
    error = pickle.loads(pickle.dumps(AllFailed(torch.zeros(2, 3), "broken")))
    assert "all 2 merges of a population failed: broken" in str(error)
    assert error.fitness.shape == (2, 3) and error.reason == "broken"


def test_without_ranks_the_problem_is_evaluated_here():
    points = torch.rand(5, 3)
    assert torch.equal(DistributedProblem(Ackley()).evaluate(points), Ackley().evaluate(points))


class SomeFail(Problem):
    """Points with a negative first coordinate fail; the fitness is a number or M numbers.

    :param broken_at: the populations, counted from 0, in which every point fails.
    """

    def __init__(self, columns=None, broken_at=()):
        super().__init__()
        self.columns, self.broken_at, self.populations = columns, broken_at, 0

    def evaluate(self, pop):
        failed = (pop[:, 0] < 0) | (self.populations in self.broken_at)
        self.populations += 1
        fitness = torch.where(failed, -torch.inf, -pop.square().sum(1))
        if self.columns is not None:
            fitness = fitness[:, None].repeat(1, self.columns)
        if failed.all():
            raise AllFailed(fitness, f"first of {len(pop)}")
        return fitness


POINTS = torch.tensor([[1.0, 0.5], [-1.0, 0.5], [-0.2, 3.0], [0.3, 3.0]])


@pytest.mark.parametrize("columns", [None, 2])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_failed_points_that_are_all_of_a_share_are_worst(count, columns):
    def evaluate():
        return DistributedProblem(SomeFail(columns)).evaluate(POINTS[:count]).tolist()

    expected = SomeFail(columns).evaluate(POINTS[:count]).tolist()
    assert on_ranks(3, evaluate) == 3 * [expected]


def test_a_population_that_failed_on_all_ranks_is_an_error_on_all_ranks():
    def evaluate():
        DistributedProblem(SomeFail()).evaluate(POINTS[1:3].repeat(2, 1))

    message = "evaluate: expected scores, found that all 4 merges of a population failed"
    assert on_ranks(3, evaluate) == 3 * [f"AllFailed: {message}: first of 2"]


def test_another_error_ends_the_search_on_all_ranks_whatever_else_failed():
    class Broken(SomeFail):
        def evaluate(self, pop):
            if pop[0, 0] == POINTS[3, 0]:
                raise RuntimeError("no arithmetic today")
            return super().evaluate(pop)

    def evaluate():
        return DistributedProblem(Broken()).evaluate(POINTS[1:])

    others = "RuntimeError: rank 2 of 3 could not evaluate its share of the population: "
    error = "RuntimeError: no arithmetic today"
    assert on_ranks(3, evaluate) == [others + error, others + error, error]


@pytest.mark.language_model
def test_merges_that_fail_on_ranks_count_as_in_one_process(experts, one_thread):
    def evaluate(spread):
        problem = spread(merge_problem_with_failures(experts))
        return [problem.evaluate(POINTS[:3]).tolist(), problem.evaluate(POINTS[1:]).tolist()]

    expected = evaluate(lambda problem: problem)
    assert expected[0][0] > -torch.inf and expected[0][1:] == 2 * [-torch.inf]
    assert on_ranks(3, evaluate, DistributedProblem) == 3 * [expected]


def resumable_search(problem, folder, steps=5):
    """Run a search without gradients, which a fork can make, to its end."""
    torch.manual_seed(6)
    bounds = torch.ones(2)
    workflow = StdWorkflow(PSO(3, -bounds, bounds), problem, opt_direction="max")
    with ResumableSearch(workflow, folder) as search:
        search.run(steps)
    return workflow.algorithm.fit.tolist()


def test_a_search_with_failed_points_is_written_down_on_ranks_as_in_one_process(tmp_path):
    def run_search(folder):
        return resumable_search(DistributedProblem(SomeFail()), folder)

    found = run_search(tmp_path / "one")
    assert on_ranks(3, run_search, tmp_path / "three") == 3 * [found]
    assert history(tmp_path / "three") == history(tmp_path / "one")
    fitness = [row["fitness"] for row in history(tmp_path / "one")]
    assert len(fitness) == 15 and 0 < fitness.count("-inf") < 15


def test_a_population_that_failed_on_all_ranks_is_tried_again_when_the_search_goes_on(tmp_path):
    def run_search(folder, broken_at=()):
        return resumable_search(DistributedProblem(SomeFail(broken_at=broken_at)), folder)

    found = run_search(tmp_path / "whole")
    stopped = on_ranks(3, run_search, tmp_path / "cut", [2])
    assert all("all 3 merges of a population failed" in error for error in stopped)
    assert len(history(tmp_path / "cut")) == 6
    assert on_ranks(3, run_search, tmp_path / "cut") == 3 * [found]
    assert history(tmp_path / "cut") == history(tmp_path / "whole")


@pytest.mark.slow
def test_a_search_whose_rank_was_killed_goes_on_under_torchrun(tmp_path):
    script = TESTS / "resume" / "resume_on_ranks.py"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run([sys.executable, script, whole]).returncode == 0
    killed = torchrun(2, script, cut, "1", "2")
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr
    assert len(history(cut)) == 14
    result = torchrun(2, script, cut)
    assert result.returncode == 0, result.stderr[-3000:]
    assert history(cut) == history(whole)
    shares = (tmp_path / "cut.shares").read_text().split()
    # Rank 0 had made its share, of 4, of the third population, which was not written.
    assert sum(int(share) for share in shares) - 4 == 35
