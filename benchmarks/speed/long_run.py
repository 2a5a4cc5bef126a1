"""Is memory flat over a long run, and what does an evaluation take on disk?

A resumable search by SurrogateEvoGM on the synthetic suite: 1,000 evaluations of 169 examples, with
their margins in the journal.

    python -m benchmarks.speed.long_run     # prints a table; memory.csv and .svg in runs/long_run
"""

import gc
import shutil
from pathlib import Path

import pandas as pd
import psutil
import torch
from evox.workflows import StdWorkflow

from benchmarks.plots import draw_panels
from benchmarks.suites import synthetic
from evox_evogm import Outcomes, ResumableSearch, SurrogateEvoGM

FOLDER = Path("runs/long_run")
EXPERTS = 10
POP_SIZE, STEPS, SHOWN = 20, 50, 5
MEMORY, DISK = "resident memory, MiB", "run folder, MiB"


def make_search(folder: Path) -> ResumableSearch:
    torch.manual_seed(0)
    problem = synthetic.make_problem(EXPERTS, objectives="outcomes")
    upper = torch.ones(EXPERTS)
    algorithm = SurrogateEvoGM(POP_SIZE, -upper, upper, outcomes=Outcomes(*problem.outcomes))
    workflow = StdWorkflow(algorithm, problem, opt_direction="max")
    return ResumableSearch(workflow, folder)


def kibibytes(path: Path) -> float:
    return path.stat().st_size / 2**10


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    run_folder = FOLDER / "run"
    search = make_search(run_folder)
    rows = []
    print(
        "| evaluations | resident memory, MiB | history, KiB an evaluation | state, KiB |\n"
        "| ---: | ---: | ---: | ---: |"
    )
    for step in range(1, STEPS + 1):
        search.run(step)
        gc.collect()
        evaluations = step * POP_SIZE
        memory = psutil.Process().memory_info().rss / 2**20
        history = kibibytes(run_folder / "history.jsonl")
        state = kibibytes(run_folder / "state.safetensors")
        disk = (history + state) / 2**10
        rows.append({"evaluations": evaluations, MEMORY: memory, DISK: disk})
        if step % SHOWN == 0 or step == 1:
            each = history / evaluations
            print(f"| {evaluations} | {memory:.0f} | {each:.1f} | {state:.0f} |", flush=True)
    search.close()
    table = pd.DataFrame(rows).set_index("evaluations")
    table.to_csv(FOLDER / "memory.csv")
    draw_panels({"evaluations": table}, FOLDER / "memory.svg", ylabel="MiB")


if __name__ == "__main__":
    main()
