"""`evogm merge` under torchrun finds what it finds alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from builders import change_settings, history, merge
from ranks import on_ranks

from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.torchrun import help_run, helped, ranks_of_torchrun
from evox_evogm.problems.adapters import regmean_file
from evox_evogm.problems.rank_group import StoreGroup


def torchrun(project, out):
    """Run `evogm merge` on two ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    evogm = [Path(sys.executable).parent / "evogm", "merge", project / "run.yaml"]
    command = [*launcher, "--nproc-per-node", "2", *evogm, "--out", project / out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_without_torchrun_a_run_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert ranks_of_torchrun().count == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks_of_torchrun().count == 1


@pytest.mark.slow
@pytest.mark.language_model
@pytest.mark.parametrize("keep_experts", [False, True])
def test_helpers_take_regressed_experts_from_the_leader(project, keep_experts):
    own = {"first": "sums", "second": "quiz"}
    change_settings(project, regmean=own, keep_experts=keep_experts)

    def work():
        rank = dist.get_rank()
        ranks = StoreGroup(dist.FileStore(str(project / "store"), 2), rank, 2)
        settings, folder = read_settings(project / "run.yaml", [])
        if rank == 1:
            regmean_file.regress = None  # so that a helper cannot regress
            return help_run(folder, [], ranks)
        with MergeRun(settings, folder, project / "out") as run, helped(run, ranks):
            return (project / "out" / "regmean.safetensors").is_file()

    assert on_ranks(2, work) == [True, None]


@pytest.mark.slow
@pytest.mark.language_model
def test_a_run_on_two_ranks_finds_what_it_finds_alone_and_is_reopened(project):
    result = torchrun(project, "ranks")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 ranks score merges together" in result.stdout
    assert result.stdout.count("coefficients (1 adds all of an expert)") == 1
    assert merge(project, out="alone") == 0
    for found, expected in zip(history(project / "ranks"), history(project / "alone"), strict=True):
        assert found["coefficients"] == pytest.approx(expected["coefficients"], abs=1e-4)
        assert found["score"] == pytest.approx(expected["score"], abs=1e-4)
        assert found["examples"]["quiz"] == expected["examples"]["quiz"]
    scores = []
    for out in ("ranks", "alone"):
        scores.append(json.loads((project / out / "result.json").read_text())["scores"][-1]["test"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    again = torchrun(project, "ranks")
    assert again.returncode == 0 and "this run is finished" in again.stdout
