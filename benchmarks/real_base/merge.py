"""Run `evogm merge` on the three adapters: with plain prompts, and with chats."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import yaml

from benchmarks.real_base.tasks import task_entries, write_json_lines
from benchmarks.real_base.train import SOURCES

RUNS = {"plain": False, "chat": True}  # and whether its questions are chats
BUDGET = 13


def write_settings(name: str, base: Path, out: Path) -> Path:
    """Write the settings of a run, and the files of its tasks.

    :param name: of the run.
    :param base: the folder of the base.
    :param out: the folder with `adapters`.
    """
    experts = {source.name: f"adapters/{source.name}" for source in SOURCES}
    settings = {
        "base": str(base),
        "experts": experts,
        "tasks": task_entries(chat=RUNS[name]),
        "budget": BUDGET,
        "dtype": "float32",
        "device": "cpu",
    }
    write_json_lines(out)
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def merge_runs(base: Path, out: Path, names: Iterable[str] = RUNS) -> None:
    """Make the runs that are not finished, and write down what they cost.

    :param base: the folder of the base.
    :param out: gets a run folder for each, and beside it `NAME_cost.json`.
    :param names: of the runs; by default all.
    :raises SystemExit: if a run fails.
    """
    for name in names:
        settings = write_settings(name, base.resolve(), out)
        folder = out / name
        if (folder / "result.json").is_file():
            continue
        cost = run_command([str(settings), "--out", str(folder)])
        (out / f"{name}_cost.json").write_text(json.dumps(cost) + "\n")
        print(f"{name}: {cost}", flush=True)


def run_command(arguments: list[str]) -> dict[str, float]:
    """Run `evogm merge`.

    :return: the minutes of its process, those of processor time, and its peak memory in GiB.
    :raises SystemExit: if it fails.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "evox_evogm.command.cli", "merge", *arguments]
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"evogm merge: expected status 0, found {process.returncode}")
    minutes = (time.perf_counter() - start) / 60
    processor = (used.ru_utime + used.ru_stime) / 60
    return {
        "minutes": round(minutes, 1),
        "processor_minutes": round(processor, 1),
        "peak_gib": round(used.ru_maxrss / 2**20, 2),
    }
