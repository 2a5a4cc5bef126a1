"""Is memory flat over a long run, and what does an evaluation take on disk?

A resumable search with screened proposals on `small_level.py`, 1,000 evaluations of 169 examples, its margins in the journal.

    python benchmarks/long_run.py     # prints a table; memory.csv and memory.png in runs/long_run
"""

import csv
import gc
import shutil
from pathlib import Path

import psutil
import small_level
import torch
from evox.workflows import StdWorkflow

from evox_evogm import EvoGM, Outcomes, ResumableSearch

OUT, POP_SIZE, STEPS, SHOWN = Path("runs/long_run"), 20, 50, 5


def plot(rows: list[tuple[int, float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    evaluations, memory, disk = zip(*rows, strict=True)
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.plot(evaluations, memory, label="resident memory, MiB")
    axis.plot(evaluations, disk, label="run folder, MiB")
    axis.set(xlabel="evaluations", ylabel="MiB", ylim=(0, None))
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(0)
    problem = small_level.make_problem(10, objectives="outcomes")
    box = torch.ones(10)
    outcomes = Outcomes(*problem.outcomes)
    algorithm = EvoGM(POP_SIZE, -box, box, clamp=False, outcomes=outcomes, epochs=50)
    search = ResumableSearch(StdWorkflow(algorithm, problem, opt_direction="max"), OUT / "run")
    rows = []
    print(
        "| evaluations | resident memory, MiB | history, KiB an evaluation | state, KiB |\n| ---: | ---: | ---: | ---: |"
    )
    for step in range(1, STEPS + 1):
        search.run(step)
        gc.collect()
        evaluations, memory = step * POP_SIZE, psutil.Process().memory_info().rss / 2**20
        history, state = (
            file.stat().st_size / 2**10
            for file in (OUT / "run/history.jsonl", OUT / "run/state.safetensors")
        )
        rows.append((evaluations, memory, (history + state) / 2**10))
        if step % SHOWN == 0 or step == 1:
            print(
                f"| {evaluations} | {memory:.0f} | {history / evaluations:.1f} | {state:.0f} |",
                flush=True,
            )
    search.close()
    with (OUT / "memory.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["evaluations", "resident memory, MiB", "run folder, MiB"], *rows]
        )
    plot(rows, OUT / "memory.png")


if __name__ == "__main__":
    main()
