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

SCRIPT = Path(__file__).with_name("search_on_ranks.py")


@pytest.fixture
def experts(make_adapter):
    make_adapter("first", seed=1)
    return make_adapter("second", seed=2).parent


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_rank_has_the_history_of_one_process(ranks, tmp_path, experts):
    out = tmp_path / "out.json"
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
    ]
    result = subprocess.run(
        [*torchrun, SCRIPT, out, experts],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = {**histories(experts), "plain workflow": search(Ackley(), 6)}
    torch.set_num_threads(threads)
    for rank in range(ranks):
        found = json.loads(Path(f"{out}.{rank}").read_text())
        for case, expected_history in expected.items():
            assert found[case] == expected_history, case
        assert found["drawing"] == expected["seven"]
        assert "the first coordinate is too large" in found["failing"]
        if ranks > 1:
            culprit = found["failing"].startswith("ValueError")
            assert culprit or found["failing"].startswith(
                f"RuntimeError: rank 0 of {ranks} could not evaluate its share"
            )
            assert culprit == (rank == 0)
            assert "expected the same seed on every rank" in found["other seed"]
            assert "enable_distributed left off" in found["split twice"]


def test_box_and_outcomes_are_the_problems():
    class Boxed(Ackley):
        box, outcomes = (
            (torch.zeros(2), torch.ones(2)),
            (torch.ones(3), torch.ones(3, dtype=torch.bool)),
        )

    problem = Boxed()
    spread = DistributedProblem(problem)
    assert spread.box is problem.box and spread.outcomes is problem.outcomes


def test_the_ranks_that_are_left_say_that_one_has_died(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out = tmp_path / "out.json"
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, out, "die"],
            env=environment(
                RANK=str(rank), WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            ),
            stderr=subprocess.PIPE,
        )
        for rank in range(3)
    ]
    processes[1].wait(timeout=120)
    died = time.monotonic()
    for process in processes:
        process.communicate(timeout=60)
    assert time.monotonic() - died < 60
    assert all(process.returncode != 0 for process in processes)
    for rank in (0, 2):
        assert (
            f"rank {rank} lost the other ranks: one has died" in Path(f"{out}.{rank}").read_text()
        )


def test_torchrun_ends_the_others_and_names_the_rank_that_died(tmp_path):
    started = time.monotonic()
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command = [*torchrun, SCRIPT, tmp_path / "out.json", "die"]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode != 0 and time.monotonic() - started < 60
    assert "Signal 9 (SIGKILL)" in result.stderr and "rank      : 1" in result.stderr


def test_a_population_with_missing_numbers_is_not_taken_for_another_one():
    points = torch.tensor([[1.0, torch.nan], [0.5, 2.0]])
    DistributedProblem(Ackley())._check_same(points, points.clone())


def test_without_ranks_the_problem_is_evaluated_here():
    points = torch.rand(5, 3)
    assert torch.equal(DistributedProblem(Ackley()).evaluate(points), Ackley().evaluate(points))


def test_a_search_whose_rank_was_killed_goes_on_under_torchrun(tmp_path):
    script = SCRIPT.with_name("resume_on_ranks.py")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        script,
    ]

    def run(command):
        return subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=120
        )

    assert run([sys.executable, script, tmp_path / "whole"]).returncode == 0
    killed = run([*torchrun, tmp_path / "cut", "1", "2"])
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr
    assert len(history(tmp_path / "cut")) == 14
    result = run([*torchrun, tmp_path / "cut"])
    assert result.returncode == 0, result.stderr[-3000:]
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    shares = [int(line) for line in (tmp_path / "cut.shares").read_text().split()]
    assert (
        sum(shares) - 4 == 35
    )  # rank 0 had made its share of the third population, which was not written
