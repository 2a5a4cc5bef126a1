"""How long does one step of EvoGM take, evaluations excluded, and how close is it to the machine's limit?

The three trained steps of a round at the release settings (n = 10, P = 20, 200 epochs each) are timed four ways - eager,
compiled, 64 runs under vmap, 64 runs under vmap and compiled - beside a plain PyTorch loop of the same training (nn.Module,
autograd, torch.optim.Adam) and beside the matrix products alone. Interleaved repeats in one process, medians.

    python benchmarks/step_speed.py [--repeats 7]
    python benchmarks/step_speed.py --screened       # instead: a step of the default search by experts and evaluations so far
"""

import argparse
import statistics
import time
from itertools import pairwise

import torch
from evox import compile, use_state, vmap
from evox.core import Problem
from evox.problems.numerical import Sphere
from evox.workflows import StdWorkflow

from evox_evogm import EvoGM, Outcomes
from evox_evogm.algorithms.evogm import SCREENED_POP_SIZE
from evox_evogm.algorithms.training import train

OUTCOMES = 169  # of the default search: as many as level small has dev questions
N, POP_SIZE, N_ITERS, EPOCHS, RUNS = 10, 20, 3, 200, 64
SIZES = [N, 128, 256, 256, 256, 128, N]
LR, WINNER_RATIO, CYCLE_WEIGHT, OPT_WEIGHT = 1e-4, 0.3, 100.0, 1.0
WINNERS = [
    int(WINNER_RATIO * POP_SIZE * step + 1e-4) for step in range(1, N_ITERS + 1)
]  # of the three trained steps


class PlainEvoGM:
    """One round as anybody would write it first."""

    def __init__(self):
        self.forth, self.back = plain_generator(), plain_generator()
        self.optimizer = torch.optim.Adam(
            [*self.forth.parameters(), *self.back.parameters()], lr=LR
        )
        self.points = 2 * torch.rand(POP_SIZE, N) - 1
        self.fitness = (self.points**2).sum(1)

    def step(self):
        order = self.fitness.argsort()
        self.points, self.fitness = self.points[order], self.fitness[order]
        wins = int(WINNER_RATIO * len(self.points) + 1e-4)
        draws = torch.rand(EPOCHS, len(self.points))
        plain_training(self.forth, self.back, self.optimizer, self.points, wins, draws)
        with torch.no_grad():
            proposals = self.forth(self.points[:POP_SIZE])
        self.points = torch.cat([self.points, proposals])
        self.fitness = torch.cat([self.fitness, (proposals**2).sum(1)])


def plain_generator() -> torch.nn.Sequential:
    layers = [
        part
        for d_in, d_out in pairwise(SIZES)
        for part in (torch.nn.Linear(d_in, d_out), torch.nn.ReLU())
    ]
    return torch.nn.Sequential(*layers[:-1], torch.nn.Tanh())


def plain_training(forth, back, optimizer, points, wins, draws):
    mse = torch.nn.functional.mse_loss
    winners, losers = points[:wins], points[wins:]
    target = winners.mean(0).expand_as(winners)
    for draw in draws:
        batch = losers[(draw[:wins] * len(losers)).long()]
        moved = forth(batch)
        cycle = mse(back(moved), batch) + mse(forth(back(winners)), winners)
        loss = CYCLE_WEIGHT * cycle + OPT_WEIGHT * mse(moved, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def largest_difference() -> float:
    """Train on the same draws both ways; the largest difference of a proposal."""
    plain = PlainEvoGM()
    plain.points = plain.points[plain.fitness.argsort()]
    parameters = torch.stack([flat(plain.forth), flat(plain.back)])
    draws = torch.rand(EPOCHS, POP_SIZE)
    settings = torch.tensor([LR, WINNER_RATIO, CYCLE_WEIGHT, OPT_WEIGHT])
    zero = torch.zeros(2, *parameters.shape)
    counts = (
        torch.tensor(0),
        torch.tensor(POP_SIZE),
        torch.tensor(0),
    )  # Adam steps before, rows of the history, seed
    ours, _, _ = train(
        parameters, zero, counts[0], plain.points, counts[1], draws, settings, counts[2], SIZES
    )
    plain_training(plain.forth, plain.back, plain.optimizer, plain.points, WINNERS[0], draws)
    theirs = torch.stack([flat(plain.forth), flat(plain.back)])
    moved = float((theirs - parameters).abs().max())
    print(f"200 epochs on the same draws: parameters moved by up to {moved:.1e}", end="; ")
    return float((ours - theirs).abs().max())


def flat(module) -> torch.Tensor:
    return torch.cat(
        [(p.detach().mT if p.ndim == 2 else p.detach()).flatten() for p in module.parameters()]
    )


def make_workflow() -> StdWorkflow:
    bounds = torch.ones(N)
    return StdWorkflow(EvoGM(POP_SIZE, -bounds, bounds, proposal="paper"), Sphere())


def eager():
    workflow = make_workflow()
    workflow.init_step()
    return workflow.step


def plain():
    return PlainEvoGM().step


def functional(runs: int, compiled: bool):
    """A function that prepares a run of `runs` workflows side by side (1: no vmap) and returns its step."""
    workflow = make_workflow()
    if runs == 1:
        init_step, step, state = (
            use_state(workflow.init_step),
            use_state(workflow.step),
            workflow.state_dict(),
        )
    else:
        init_step, step = (
            vmap(use_state(f), randomness="different") for f in (workflow.init_step, workflow.step)
        )
        parameters, buffers = torch.func.stack_module_state([workflow] * runs)
        state = {**parameters, **buffers}
    if compiled:
        step = compile(step)

    def prepare():
        current = init_step(state)

        def next_step():
            nonlocal current
            current = step(current)

        return next_step

    return prepare


def seconds_per_step(prepare, runs: int) -> float:
    """Seconds per run and step, mean over the three trained steps of a fresh round."""
    step = prepare()
    start = time.perf_counter()
    for _ in range(N_ITERS):
        step()
    return (time.perf_counter() - start) / N_ITERS / runs


def limit(rows: int, repeats: int = 50) -> float:
    """Seconds of the products of one epoch: four passes through a generator, forward and backward, two at a time."""
    activations = [torch.rand(2, rows, width) for width in SIZES]
    weights = [torch.rand(2, d_in, d_out) for d_in, d_out in pairwise(SIZES)]
    gradients = [torch.empty_like(weight) for weight in weights]
    start = time.perf_counter()
    for _ in range(repeats):
        for weight, gradient, before, after in zip(
            weights, gradients, activations[:-1], activations[1:], strict=True
        ):
            torch.bmm(before, weight)
            torch.bmm(after, weight.mT)
            torch.bmm(before.mT, after, out=gradient)
    return 2 * (time.perf_counter() - start) / repeats


class Margins(Problem):
    """The share of `OUTCOMES` random half spaces that a point is in, and by how much: as good as free."""

    def __init__(self, n: int):
        super().__init__()
        self.normals = torch.randn(n, OUTCOMES) / n**0.5
        self.outcomes = Outcomes(
            torch.full((OUTCOMES,), 1 / OUTCOMES), torch.ones(OUTCOMES, dtype=torch.bool)
        )

    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        margins = pop @ self.normals - 0.3
        return torch.cat([(margins > 0).float().mean(1, keepdim=True), margins], 1)


def screened_seconds(n: int, rows: int, repeats: int) -> list[float]:
    """Of the next steps of a search that has evaluated `rows` points: training, candidates, fit and choice."""
    problem, values = Margins(n), []
    history = 2 * torch.rand(rows, n) - 1
    scores = -problem.evaluate(history)  # minimised
    history, scores = (part[scores[:, 0].argsort()] for part in (history, scores))
    for _ in range(repeats):
        workflow = StdWorkflow(
            EvoGM(SCREENED_POP_SIZE, -torch.ones(n), torch.ones(n), outcomes=problem.outcomes),
            problem,
            opt_direction="max",
        )
        workflow.init_step()
        algorithm = workflow.algorithm
        kept = min(rows, len(algorithm.points))
        algorithm.points[:kept], algorithm.fitness[:kept] = history[:kept], scores[:kept, 0]
        algorithm.outcomes[:kept], algorithm.count = scores[:kept, 1:], torch.tensor(kept)
        start = time.perf_counter()
        workflow.step()
        values.append(time.perf_counter() - start)
    return values


def print_screened(repeats: int) -> None:
    setting = f"P {SCREENED_POP_SIZE}, {OUTCOMES} outcomes, medians of {repeats}"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {setting}\n")
    print("| seconds a step | 40 evaluations | 160 | 640 |\n| --- | ---: | ---: | ---: |")
    for n in (10, 20, 64):
        medians = [statistics.median(screened_seconds(n, rows, repeats)) for rows in (40, 160, 640)]
        print(f"| {n} experts | " + " | ".join(f"{value:.2f}" for value in medians) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--screened", action="store_true")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    torch.manual_seed(0)
    if arguments.screened:
        print_screened(repeats)
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, n {N}, P {POP_SIZE}, {EPOCHS} epochs, B {WINNERS}"
    )
    print(f"largest difference from the plain loop {largest_difference():.1e}")
    macs = sum(d_in * d_out for d_in, d_out in pairwise(SIZES))

    cases = {
        "plain PyTorch loop": (plain, 1),
        "eager": (eager, 1),
        "compiled": (functional(1, True), 1),
        f"vmap x{RUNS}": (functional(RUNS, False), RUNS),
        f"vmap x{RUNS}, compiled": (functional(RUNS, True), RUNS),
    }
    for name, (prepare, runs) in cases.items():
        start = time.perf_counter()
        seconds_per_step(prepare, runs)
        print(f"first three steps, {name}: {time.perf_counter() - start:.1f} s")
    times = {name: [] for name in cases}
    limits = []
    for _ in range(repeats):
        limits.append(statistics.mean(EPOCHS * limit(rows) for rows in WINNERS))
        for name, (prepare, runs) in cases.items():
            times[name].append(seconds_per_step(prepare, runs))

    floor, base = statistics.median(limits), statistics.median(times["plain PyTorch loop"])
    rate = EPOCHS * 12 * macs * statistics.mean(WINNERS) / floor
    print(
        f"products alone: {1e3 * floor:.0f} ms a step, {rate / 1e9:.0f} G multiply-adds a second\n"
    )
    print(
        "| | ms per run and step | spread | faster than the plain loop | times the products alone |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, values in times.items():
        value = statistics.median(values)
        spread = f"{1e3 * min(values):.0f}-{1e3 * max(values):.0f}"
        print(
            f"| {name} | {1e3 * value:.0f} | {spread} | {base / value:.1f} | {value / floor:.2f} |"
        )


if __name__ == "__main__":
    main()
