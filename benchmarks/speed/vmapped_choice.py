"""How much faster do vmapped runs of SurrogateEvoGM choose their points in threads?

16 runs with 169 outcomes choose a batch, side by side in two threads, and one after another in one
thread. The two ways take turns in one process. A row is the median ratio of wall times of such
turns, and the median ratio of processor times, which is what the threads cost. Large matrix
products alone, in the same threads, show what the machine has to give at the moment.

    python -m benchmarks.speed.vmapped_choice [--repeats 5] [--threads 2]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.speed.surrogate_step_speed import Margins
from evox_evogm import SurrogateSettings
from evox_evogm.algorithms.acquisition import select_batch, settings_number
from evox_evogm.algorithms.side_by_side import side_by_side
from evox_evogm.algorithms.surrogate_evogm import POP_SIZE

RUNS, N, OUTCOMES, POINTS = 16, 20, 169, (40, 160)
CONTROL = "matrix products alone"


class Seconds(NamedTuple):
    """What a call takes.

    wall: seconds of the clock.
    processor: seconds of all threads of this process.
    """

    wall: float
    processor: float


def choice(points: int) -> Callable[[], torch.Tensor]:
    """A function that chooses a batch for every run, after so many random points in each."""
    problem = Margins(N, OUTCOMES)
    histories, fitness = [], []
    for _ in range(RUNS):
        history = 2 * torch.rand(points, N) - 1
        values = -problem.evaluate(history)
        order = values[:, 0].argsort()
        histories.append(history[order])
        fitness.append(values[order])
    weights, by_sign, _ = problem.outcomes
    tensors = (
        torch.stack(histories),
        torch.stack(fitness),
        torch.full((RUNS,), points),
        torch.tensor([-1.0, 1.0])[:, None].expand(RUNS, 2, N),
        weights.expand(RUNS, -1),
        by_sign.expand(RUNS, -1),
        torch.zeros(RUNS, OUTCOMES, dtype=torch.int64),
        torch.arange(RUNS),
    )
    number = settings_number(SurrogateSettings())
    run_all = torch.vmap(lambda *run: select_batch(*run, POP_SIZE, N, number))
    return lambda: run_all(*tensors)


def products() -> Callable[[], torch.Tensor]:
    """A function that multiplies two large matrices for every run."""
    matrices = torch.rand(RUNS, 1500, 1500)
    runs = list(zip(matrices, matrices, strict=True))
    return lambda: torch.stack(side_by_side(torch.mm, runs))


def seconds(call: Callable[[], torch.Tensor], threads: int) -> tuple[Seconds, torch.Tensor]:
    """The time of a call with so many threads, and its result."""
    torch.set_num_threads(threads)
    wall, processor = time.perf_counter(), time.process_time()
    result = call()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    cases = {f"{points} points": choice(points) for points in POINTS}
    cases[CONTROL] = products()
    print(
        "| | processor s a run, one by one | times as fast | spread | times the processor time |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    for name, call in cases.items():
        ratios, costs, alone = [], [], []
        for _ in range(arguments.repeats):
            one_by_one, expected = seconds(call, 1)
            together, found = seconds(call, arguments.threads)
            if name != CONTROL and not torch.equal(found, expected):
                raise AssertionError(f"{name}: expected the points of one by one, found others")
            ratios.append(one_by_one.wall / together.wall)
            costs.append(together.processor / one_by_one.processor)
            alone.append(one_by_one.processor / RUNS)
        print(
            f"| {name} | {statistics.median(alone):.3f} | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f}-{max(ratios):.2f} | {statistics.median(costs):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
