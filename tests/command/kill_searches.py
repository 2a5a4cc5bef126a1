"""Searches that are killed at random moments and started again, beside one that is not.

    python tests/command/kill_searches.py PROJECT KILLS

Run by test_kills.py. PROJECT holds `run.yaml`. Everything is imported once, and each search is a
fork. Records are written in two halves with a pause between, so that some kills fall into a write.
Prints what happened as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from evox_evogm.command import cli, merge_run  # noqa: F401  merge_run: imported before the forks
from evox_evogm.problems.evaluation_cache import EvaluationCache
from evox_evogm.resume import journal

chance = random.Random(0)


class SlowFile:
    """Writes in two halves, a while apart."""

    pause = 0.3  # seconds; long enough for some of 50 kills to fall into it

    def __init__(self, file):
        self.file = file

    def write(self, data):
        os.write(self.file.fileno(), data[: len(data) // 2])
        time.sleep(self.pause)
        os.write(self.file.fileno(), data[len(data) // 2 :])
        return len(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def search(project: Path, out: Path) -> int:
    """Run the command in a process of its own.

    Merges that it evaluates although the history has them go to the file `recomputed`.
    """
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    path = out / "history.jsonl"
    known = set()
    if path.exists():
        known = {tuple(record["coefficients"]) for record in records(path)}
    unseen, open_journal = EvaluationCache.unseen, journal.Journal.__init__

    def watched(cache, pop):
        new = unseen(cache, pop)
        again = [row for row in new.tolist() if tuple(row) in known]
        if again:
            with open(project / "recomputed", "a") as file:
                file.write(f"{out.name} {again}\n")
        return new

    def write_slowly(self, path):
        open_journal(self, path)
        self.file = SlowFile(self.file)

    EvaluationCache.unseen, journal.Journal.__init__ = watched, write_slowly
    os._exit(cli.main(["merge", str(project / "run.yaml"), "--out", str(out)]))


def records(path: Path) -> list[dict]:
    found = []
    for block in journal.read_blocks(path):
        found += block.records
    return found


def history(out: Path) -> list[dict]:
    rows = records(out / "history.jsonl")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@dataclass
class Tally:
    """What happened, in processes and runs."""

    killed: int = 0
    in_a_write: int = 0  # of those killed
    finished: int = 0
    equal: int = 0  # of those finished, with the history of a run in one piece
    statuses: set = field(default_factory=set)  # of the processes that were not killed
    recomputed: int = 0  # populations with merges that the history has


def exit_status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def unfinished_write(path: Path, size: int, seen: int) -> bool:
    """Whether a journal ends in a truncated block that was not there before."""
    whole = sum(block.length for block in journal.read_blocks(path)) if size else 0
    return size not in (seen, 0) and whole < size


def run_with_kills(project: Path, out: Path, seconds: float, kills: int, tally: Tally) -> None:
    """Start one run again and again until it ends by itself.

    :param seconds: that a run in one piece takes; a process is killed within them.
    :param kills: no process is killed when so many have been.
    """
    path = out / "history.jsonl"
    seen = 0  # bytes; a truncated block stays until the next one is written, and counts once
    while True:
        pid = search(project, out)
        if tally.killed < kills:
            time.sleep(chance.uniform(0.0, seconds))
            os.kill(pid, signal.SIGKILL)
        status = exit_status(pid)
        if status != -signal.SIGKILL:
            tally.statuses.add(status)
            return
        tally.killed += 1
        size = path.stat().st_size if path.exists() else 0
        tally.in_a_write += unfinished_write(path, size, seen)
        seen = size


def main() -> None:
    project, kills = Path(sys.argv[1]), int(sys.argv[2])
    if kills == 1:
        SlowFile.pause = 0.05
    start = time.monotonic()
    assert exit_status(search(project, project / "whole")) == 0
    seconds = time.monotonic() - start
    whole, tally = history(project / "whole"), Tally()
    while tally.killed < kills:
        out = project / f"run{tally.finished}"
        run_with_kills(project, out, seconds, kills, tally)
        tally.finished += 1
        tally.equal += history(out) == whole
    recomputed = project / "recomputed"
    if recomputed.exists():
        tally.recomputed = len(recomputed.read_text().splitlines())
    print(json.dumps({**asdict(tally), "statuses": sorted(tally.statuses)}))


if __name__ == "__main__":
    main()
