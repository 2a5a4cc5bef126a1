"""How long does one step of EvoGM take, evaluations excluded, and how close is it to the limit?

The three trained steps of a round at the release settings (n = 10, P = 20, 200 epochs each) are
timed four ways: eager, compiled, 64 runs under vmap, 64 runs under vmap and compiled. Beside them
stand a plain PyTorch loop of the same training (`plain_evogm.py`) and the matrix products alone,
which are the machine's limit. Repeats are interleaved in one process, medians reported.

    python -m benchmarks.speed.step_speed [--repeats 7]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from evox import compile, use_state, vmap
from evox.problems.numerical import Sphere
from evox.workflows import StdWorkflow

from benchmarks.plots import draw_bars
from benchmarks.speed.plain_evogm import PlainEvoGM, train_both_ways
from evox_evogm import EvoGM

FOLDER = Path("runs/step_speed")
N, POP_SIZE, N_ITERS, EPOCHS, RUNS = 10, 20, 3, 200, 64
SIZES = [N, 128, 256, 256, 256, 128, N]
LR, WINNER_RATIO, CYCLE_WEIGHT, OPT_WEIGHT = 1e-4, 0.3, 100.0, 1.0
# Of the three trained steps.
WINNERS = [int(WINNER_RATIO * POP_SIZE * step + 1e-4) for step in range(1, N_ITERS + 1)]

Step = Callable[[], object]


def make_workflow() -> StdWorkflow:
    bounds = torch.ones(N)
    return StdWorkflow(EvoGM(POP_SIZE, -bounds, bounds), Sphere())


def make_plain() -> PlainEvoGM:
    settings = (LR, WINNER_RATIO, CYCLE_WEIGHT, OPT_WEIGHT)
    return PlainEvoGM(N, POP_SIZE, SIZES, EPOCHS, settings)


def plain() -> Step:
    return make_plain().step


def eager() -> Step:
    workflow = make_workflow()
    workflow.init_step()
    return workflow.step


def functional(runs: int, compiled: bool) -> Callable[[], Step]:
    """A function that prepares `runs` workflows side by side (1: no vmap) and returns their
    step."""
    workflow = make_workflow()
    init_step, step = use_state(workflow.init_step), use_state(workflow.step)
    state = workflow.state_dict()
    if runs > 1:
        init_step = vmap(init_step, randomness="different")
        step = vmap(step, randomness="different")
        parameters, buffers = torch.func.stack_module_state([workflow] * runs)
        state = {**parameters, **buffers}
    if compiled:
        step = compile(step)

    def prepare() -> Step:
        current = init_step(state)

        def next_step() -> None:
            nonlocal current
            current = step(current)

        return next_step

    return prepare


def seconds_per_step(prepare: Callable[[], Step], runs: int) -> float:
    """Seconds per run and step, mean over the three trained steps of a fresh round."""
    step = prepare()
    start = time.perf_counter()
    for _ in range(N_ITERS):
        step()
    return (time.perf_counter() - start) / N_ITERS / runs


def limit(rows: int, repeats: int = 50) -> float:
    """Seconds of the products of one epoch.

    These are four passes through a generator, forward and backward, two at a time.

    :param rows: of a batch.
    """
    activations = [torch.rand(2, rows, width) for width in SIZES]
    weights = [torch.rand(2, d_in, d_out) for d_in, d_out in pairwise(SIZES)]
    gradients = [torch.empty_like(weight) for weight in weights]
    start = time.perf_counter()
    for _ in range(repeats):
        for layer, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            before, after = activations[layer], activations[layer + 1]
            torch.bmm(before, weight)
            torch.bmm(after, weight.mT)
            torch.bmm(before.mT, after, out=gradient)
    return 2 * (time.perf_counter() - start) / repeats


def print_times(times: dict[str, list[float]], floor: float) -> None:
    """A line per way.

    :param times: seconds per run and step.
    :param floor: seconds of the products alone.
    """
    base = statistics.median(times["plain PyTorch loop"])
    print(
        "| | ms per run and step | spread | faster than the plain loop "
        "| times the products alone |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, values in times.items():
        value = statistics.median(values)
        spread = f"{1e3 * min(values):.0f}-{1e3 * max(values):.0f}"
        print(
            f"| {name} | {1e3 * value:.0f} | {spread} | {base / value:.1f} | {value / floor:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, n {N}, P {POP_SIZE}, "
        f"{EPOCHS} epochs, B {WINNERS}"
    )
    moved, difference = train_both_ways(make_plain())
    print(f"200 epochs on the same draws: parameters moved by up to {moved:.1e}", end="; ")
    print(f"largest difference from the plain loop {difference:.1e}")
    ways = {
        "plain PyTorch loop": (plain, 1),
        "eager": (eager, 1),
        "compiled": (functional(1, True), 1),
        f"vmap x{RUNS}": (functional(RUNS, False), RUNS),
        f"vmap x{RUNS}, compiled": (functional(RUNS, True), RUNS),
    }
    for name, (prepare, runs) in ways.items():
        start = time.perf_counter()
        seconds_per_step(prepare, runs)
        print(f"first three steps, {name}: {time.perf_counter() - start:.1f} s")
    times = {name: [] for name in ways}
    limits = []
    for _ in range(arguments.repeats):
        limits.append(statistics.mean(EPOCHS * limit(rows) for rows in WINNERS))
        for name, (prepare, runs) in ways.items():
            times[name].append(seconds_per_step(prepare, runs))
    floor = statistics.median(limits)
    multiply_adds = sum(d_in * d_out for d_in, d_out in pairwise(SIZES))
    rate = EPOCHS * 12 * multiply_adds * statistics.mean(WINNERS) / floor
    print(
        f"products alone: {1e3 * floor:.0f} ms a step, {rate / 1e9:.0f} G multiply-adds a second\n"
    )
    print_times(times, floor)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    table = pd.Series({**medians, "products alone": 1e3 * floor}).to_frame("ms")
    draw_bars(table, FOLDER / "step_speed.svg", xlabel="ms per run and step")


if __name__ == "__main__":
    main()
