"""How a run ends by an error: one sentence, and a status that says whose fault it is."""

import errno
import subprocess
import sys

import pytest
import torch
from builders import change_settings, history, merge

from evox_evogm.command.merge_run import MergeRun
from evox_evogm.command.statuses import status_of
from evox_evogm.problems.population_scorer import PopulationScorer
from evox_evogm.resume.resumable_search import ResumableSearch

ALLOCATOR = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
FAILURES = {
    "the accelerator's memory": (
        torch.OutOfMemoryError("CUDA out of memory."),
        "memory ran out: CUDA out of memory.",
    ),
    "the memory": (MemoryError(), "memory ran out: MemoryError"),
    "torch's memory": (RuntimeError(ALLOCATOR), "memory ran out: [enforce fail]"),
    "linear algebra": (
        torch.linalg.LinAlgError("linalg.cholesky: not positive"),
        "linalg.cholesky",
    ),
    "arithmetic": (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    "the disk": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    "the quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
    "an operator": (NotImplementedError("no kernel for this"), "no kernel for this"),
}


@pytest.mark.parametrize(("error", "words"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("where", ["before the search", "in the search", "in the scoring"])
def test_a_run_that_a_failure_ends_has_status_1_and_one_sentence(
    project, capsys, monkeypatch, error, words, where
):
    def failing(*_, **__):
        raise error

    owner, name = {
        "before the search": (MergeRun, "_load_problem"),
        "in the search": (ResumableSearch, "run"),
        "in the scoring": (MergeRun, "score_rows"),
    }[where]
    change_settings(project, budget=4)
    monkeypatch.setattr(owner, name, failing)
    assert merge(project) == 1
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1
    monkeypatch.undo()
    assert merge(project) == 0


@pytest.mark.parametrize(
    "error",
    [
        ValueError("budget: expected at least 1, found 0"),
        ModuleNotFoundError("reasoning-gym tasks need the package"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
)
def test_an_error_that_names_input_has_status_2(error):
    assert status_of(error) == 2


def test_memory_that_runs_out_in_the_final_table_is_met_with_smaller_batches(project, monkeypatch):
    score = PopulationScorer.score
    sizes = []

    def scarce(self, pop, tasks):
        sizes.append(self.language_model.batch_tokens)
        if self.language_model.batch_tokens > 600:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return score(self, pop, tasks)

    change_settings(project, budget=4)
    assert merge(project, out="whole") == 0

    def interrupted(self, best):
        raise KeyboardInterrupt

    with monkeypatch.context() as first_process:
        first_process.setattr(MergeRun, "score_rows", interrupted)
        assert merge(project) == 130
    monkeypatch.setattr(PopulationScorer, "score", scarce)
    assert merge(project) == 0
    assert sizes[:3] == [2048, 1024, 512]
    assert history(project / "out") == history(project / "whole")


@pytest.mark.lengthy
def test_the_help_names_every_status():
    command = [sys.executable, "-m", "evox_evogm.command.cli", "merge", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    text = " ".join(result.stdout.split())
    assert "3 if the run is finished but base, experts and merges all score alike" in text
    assert "4 if it is finished but its adapter cannot be used" in text
