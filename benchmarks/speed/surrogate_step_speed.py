"""How long does one step of SurrogateEvoGM take, evaluations excluded?

By experts and evaluations so far, with as many outcomes as the synthetic suite has dev questions.
A step is training, candidates, the fit of the surrogate, and the choice of a batch.

    python -m benchmarks.speed.surrogate_step_speed [--repeats 7]
"""

import argparse
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
OUTCOMES = 169
EXPERTS, EVALUATIONS = (10, 20, 64), (40, 160, 640)


class Margins(Problem):
    """The share of random half spaces that a point is in, and by how much: as good as free."""

    def __init__(self, n: int):
        super().__init__()
        self.normals = torch.randn(n, OUTCOMES) / n**0.5
        weights = torch.full((OUTCOMES,), 1 / OUTCOMES)
        self.outcomes = Outcomes(weights, torch.ones(OUTCOMES, dtype=torch.bool))

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


def step_seconds(n: int, evaluations: int, repeats: int) -> list[float]:
    """Seconds of the next step after some evaluations of random points."""
    problem = Margins(n)
    points = 2 * torch.rand(evaluations, n) - 1
    fitness = -problem.evaluate(points)
    order = fitness[:, 0].argsort()
    seconds = []
    for _ in range(repeats):
        workflow = search_after(points[order], fitness[order], problem)
        start = time.perf_counter()
        workflow.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, P {POP_SIZE}, "
        f"{OUTCOMES} outcomes, medians of {arguments.repeats}\n"
    )
    print("| seconds a step | 40 evaluations | 160 | 640 |\n| --- | ---: | ---: | ---: |")
    table = pd.DataFrame(index=list(EVALUATIONS))
    for n in EXPERTS:
        medians = []
        for evaluations in EVALUATIONS:
            medians.append(statistics.median(step_seconds(n, evaluations, arguments.repeats)))
        print(f"| {n} experts | " + " | ".join(f"{value:.2f}" for value in medians) + " |")
        table[f"{n} experts"] = medians
    path = FOLDER / "surrogate_step_speed.svg"
    draw_panels({"evaluations": table}, path, ylabel="seconds a step")


if __name__ == "__main__":
    main()
