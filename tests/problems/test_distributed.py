"""The same search on 1, 2 and 3 ranks as in one process, and a clear end when a rank dies."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from builders import history
from evox.problems.numerical import Ackley
from search_on_ranks import histories, search

from evox_evogm.problems import DistributedProblem
from evox_evogm.problems.distributed import check_same_points, join_replies, rows_of_rank

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


@pytest.mark.parametrize("ranks", [1, 2, 3])
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
        assert f"rank {rank} lost the other ranks: one has died" in message


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


def test_every_point_is_in_one_share():
    assert [rows_of_rank(rank, 3, 7).tolist() for rank in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [rows_of_rank(rank, 3, 2).tolist() for rank in range(3)] == [[0], [1], []]


def test_replies_are_joined_in_the_order_of_the_ranks_and_an_error_is_raised():
    first, third = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    assert join_replies([first, None, third]).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(
        RuntimeError, match="rank 1 of 2 could not evaluate its share of the population: OSError: x"
    ):
        join_replies([first, "OSError: x"])


def test_without_ranks_the_problem_is_evaluated_here():
    points = torch.rand(5, 3)
    assert torch.equal(DistributedProblem(Ackley()).evaluate(points), Ackley().evaluate(points))


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
