"""Searches of the command that are killed at random moments and started again, beside one that is not. Run by test_kills.py.

    python tests/kill_searches.py PROJECT KILLS

PROJECT holds `run.yaml`. Everything is imported once, and each search is a fork. Records are written in two halves with a
pause between, so that some kills fall into a write. Prints what happened as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from evox_evogm.command import cli, merge_run  # noqa: F401  merge_run: imported before the forks
from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.resume import journal


class TornFile:
    """Writes in two halves, a while apart."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        os.write(self.file.fileno(), data[: len(data) // 2])
        time.sleep(0.3)  # long enough for some of 50 kills to fall into it
        os.write(self.file.fileno(), data[len(data) // 2 :])
        return len(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def search(project: Path, out: Path) -> int:
    """Run the command in a process of its own; its evaluations of merges that the history has go to `recomputed`."""
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    path = out / "history.jsonl"
    known = {tuple(record["coefficients"]) for record in records(path)} if path.exists() else set()
    evaluate_new, open_journal = LoRAMergeProblem._evaluate_new, journal.Journal.__init__

    def watched(problem, pop):
        if again := [row for row in pop.tolist() if tuple(row) in known]:
            with open(project / "recomputed", "a") as file:
                file.write(f"{out.name} {again}\n")
        return evaluate_new(problem, pop)

    def torn(self, path):
        open_journal(self, path)
        self.file = TornFile(self.file)

    LoRAMergeProblem._evaluate_new, journal.Journal.__init__ = watched, torn
    os._exit(cli.main(["merge", str(project / "run.yaml"), "--out", str(out)]))


def records(path: Path) -> list[dict]:
    return [record for block, _ in journal.read_blocks(path) for record in block]


def history(out: Path) -> list[dict]:
    rows = records(out / "history.jsonl")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def main() -> None:
    project, kills = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(0)
    start = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(search(project, project / "whole"), 0)[1]) == 0
    seconds = time.monotonic() - start
    whole, killed, torn, finished, equal, statuses = history(project / "whole"), 0, 0, 0, 0, set()
    while killed < kills:
        out, seen = project / f"run{finished}", 0
        while True:
            pid = search(project, out)
            if killed < kills:
                time.sleep(chance.uniform(0.0, seconds))
                os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status == -signal.SIGKILL:
                killed += 1
                path = out / "history.jsonl"
                size = path.stat().st_size if path.exists() else 0
                # A torn block stays until the next one is written, and counts once.
                torn += (
                    size not in (seen, 0) and sum(n for _, n in journal.read_blocks(path)) < size
                )
                seen = size
            else:
                statuses.add(status)
                break
        finished += 1
        equal += history(out) == whole
    recomputed = project / "recomputed"
    print(
        json.dumps(
            {
                "killed": killed,
                "in a write": torn,
                "finished": finished,
                "equal": equal,
                "statuses": sorted(statuses),
                "recomputed": len(recomputed.read_text().splitlines())
                if recomputed.exists()
                else 0,
            }
        )
    )


if __name__ == "__main__":
    main()
