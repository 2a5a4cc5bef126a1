"""How long does one step of SurrogateEvoGM take on one core, evaluations excluded?

By outcomes, experts, and evaluations so far. 169 outcomes are the dev questions of the synthetic
suite. A step is training, candidates, the fit of the surrogate, and the choice of a batch. The
times are processor times of one thread: other work on the machine hardly changes them. The memory
is what a step adds at its peak, read from Linux.

    python -m benchmarks.speed.surrogate_step_speed [--repeats 7] [--outcomes 169 1600]
"""

import argparse
import re
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from evox.core import Problem
from evox.workflows import StdWorkflow

from benchmarks.plots import draw_panels
from evox_evogm import Outcomes, SurrogateEvoGM
from evox_evogm.algorithms.surrogate_evogm import POP_SIZE

FOLDER = Path("runs/step_speed")
OUTCOMES, EXPERTS, EVALUATIONS = (169, 1600), (10, 20, 64), (40, 160, 640)


class Margins(Problem):
    """The share of random half spaces that a point is in, and by how much: as good as free."""

    def __init__(self, n: int, outcomes: int):
        super().__init__()
        self.normals = torch.randn(n, outcomes) / n**0.5
        weights = torch.full((outcomes,), 1 / outcomes)
        self.outcomes = Outcomes(weights, torch.ones(outcomes, dtype=torch.bool))

    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        margins = pop @ self.normals - 0.3
        return torch.cat([(margins > 0).float().mean(1, keepdim=True), margins], 1)


def search_after(points: torch.Tensor, fitness: torch.Tensor, problem: Margins) -> StdWorkflow:
    """A search that has evaluated these points.

    :param points: an `(N, n)` tensor, the best first.
    :param fitness: an `(N, 1 + S)` tensor, minimised.
    """
    upper = torch.ones(points.shape[1])
    algorithm = SurrogateEvoGM(POP_SIZE, -upper, upper, outcomes=problem.outcomes)
    workflow = StdWorkflow(algorithm, problem, opt_direction="max")
    workflow.init_step()
    count = min(len(points), len(algorithm.points))
    algorithm.points[:count] = points[:count]
    algorithm.fitness[:count] = fitness[:count, 0]
    algorithm.outcomes[:count] = fitness[:count, 1:]
    algorithm.count = torch.tensor(count)
    return workflow


def memory(field: str) -> float:
    """Memory of this process in MiB: `VmRSS` now, or `VmHWM` at its peak."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def step_costs(n: int, outcomes: int, evaluations: int, repeats: int) -> tuple[float, float]:
    """Of the next step after some evaluations of random points: median seconds, and most MiB."""
    problem = Margins(n, outcomes)
    points = 2 * torch.rand(evaluations, n) - 1
    fitness = -problem.evaluate(points)
    order = fitness[:, 0].argsort()
    seconds, mebibytes = [], []
    for _ in range(repeats):
        workflow = search_after(points[order], fitness[order], problem)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
        before, start = memory("VmRSS"), time.process_time()
        workflow.step()
        seconds.append(time.process_time() - start)
        mebibytes.append(memory("VmHWM") - before)
    return statistics.median(seconds), max(mebibytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--outcomes", type=int, nargs="+", default=OUTCOMES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step_costs(EXPERTS[0], 1, EVALUATIONS[0], repeats=1)  # the first step loads libraries
    print(f"torch {torch.__version__}, P {POP_SIZE}, medians of {arguments.repeats}\n")
    print("| seconds (MiB) a step | 40 evaluations | 160 | 640 |\n| --- | ---: | ---: | ---: |")
    panels = {}
    for outcomes in arguments.outcomes:
        table = pd.DataFrame(index=list(EVALUATIONS))
        for n in EXPERTS:
            cells, column = [], []
            for evaluations in EVALUATIONS:
                seconds, mebibytes = step_costs(n, outcomes, evaluations, arguments.repeats)
                cells.append(f"{seconds:.2f} ({mebibytes:.0f})")
                column.append(seconds)
            print(f"| {outcomes} outcomes, {n} experts | " + " | ".join(cells) + " |", flush=True)
            table[f"{n} experts"] = column
        panels[f"evaluations, {outcomes} outcomes"] = table
    draw_panels(panels, FOLDER / "surrogate_step_speed.svg", ylabel="seconds a step")


if __name__ == "__main__":
    main()
