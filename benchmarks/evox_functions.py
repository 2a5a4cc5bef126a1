"""EvoGM beside EvoX's own algorithms and CMA-ES on test functions.

Every algorithm gets the same number of evaluations (CMA-ES and EvoGM as many as their own populations divide) on seven
functions of EvoX and on CEC2022, in 2, 10 and 20 dimensions, 15 seeds each; seeds run in one vmap where the algorithm allows.
All work in the unit box [-1, 1]^n, which is mapped to the domain of the function; outside it a point counts as the nearest
one inside plus the squared distance. The optimum of a function of EvoX is moved away from the middle of the box, where
EvoGM's fresh generators and the evolution strategies start (Schwefel's lies near an edge by itself).

A file has the columns algorithm, function, n, budget, seed, evaluations, best fitness so far, seconds of the case. Fitness has
six digits; what agrees in them counts as a tie.

    python benchmarks/evox_functions.py run       # curves to runs/evox_functions/*.csv, one file per case; can be resumed
    python benchmarks/evox_functions.py report    # tables and plots from these files
"""

import argparse
import csv
import itertools
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from compare_runs import holm
from evox import use_state, vmap
from evox.algorithms import CLPSO, CSO, DE, PSO, SHADE, SNES, JaDE, OpenES
from evox.core import Monitor, Mutable, Problem
from evox.problems.numerical import (
    CEC2022,
    Ackley,
    Ellipsoid,
    Griewank,
    Rastrigin,
    Rosenbrock,
    Schwefel,
    Sphere,
)
from evox.workflows import StdWorkflow

from evox_evogm import EvoGM
from evox_evogm.algorithms.evogm import SCREENED_POP_SIZE
from evox_evogm.baselines import CMAES

SEEDS = 15
BUDGETS = (160, 2000)
DIMENSIONS = (2, 10, 20)
FUNCTIONS = {  # EvoX's function and half the width of its usual domain
    "Sphere": (Sphere, 100.0),
    "Ackley": (Ackley, 32.0),
    "Rastrigin": (Rastrigin, 5.12),
    "Griewank": (Griewank, 600.0),
    "Rosenbrock": (Rosenbrock, 30.0),
    "Schwefel": (Schwefel, 500.0),
    "Ellipsoid": (Ellipsoid, 100.0),
}
CEC_FUNCTIONS = {f"CEC2022-F{number}": number for number in range(1, 13)}
CEC_MINIMA = dict(
    zip(
        CEC_FUNCTIONS,
        (300, 400, 600, 800, 900, 1800, 2000, 2200, 2300, 2400, 2600, 2700),
        strict=True,
    )
)


# The published method by budget, otherwise at its defaults. With 2,000 evaluations, P 20 and 25 rounds take five times as long
# as this; on Sphere, Rastrigin, F1 and F11 in 10 dimensions (3 seeds) neither they nor a winner ratio of .3 were better.
PAPER = {
    160: {"pop_size": 20, "n_rounds": 2},
    2000: {"pop_size": 100, "n_rounds": 5, "winner_ratio": 0.1},
}


def algorithms(n: int, budget: int) -> dict:
    """A function per algorithm that makes a fresh instance.

    Every algorithm is at its defaults with a population of 20, except EvoGM (3, and the published method above) and CMA-ES
    (its own default). What has no default: the evolution strategies start in the middle of the box with a standard deviation
    of .3, OpenES of .1. EvoGM's surrogate is for few evaluations: with 2,000 only the published method runs.
    """
    upper, middle = torch.ones(n), torch.zeros(n)
    screened = (
        {"EvoGM": lambda: EvoGM(SCREENED_POP_SIZE, -upper, upper)} if budget == BUDGETS[0] else {}
    )
    return screened | {
        "EvoGM paper": lambda: EvoGM(lb=-upper, ub=upper, proposal="paper", **PAPER[budget]),
        "PSO": lambda: PSO(20, -upper, upper),
        "CSO": lambda: CSO(20, -upper, upper),
        "CLPSO": lambda: CLPSO(20, -upper, upper),
        "DE": lambda: DE(20, -upper, upper),
        "SHADE": lambda: SHADE(20, -upper, upper),
        "JaDE": lambda: JaDE(20, -upper, upper),
        "OpenES": lambda: OpenES(
            20, middle.clone(), learning_rate=0.05, noise_stdev=0.1, optimizer="adam"
        ),
        "SNES": lambda: SNES(20, middle.clone(), sigma=0.3),
        "CMA-ES (cmaes)": lambda: CMAES(middle, 0.3),
    }


class UnitBox(Problem):
    """A problem seen from the box [-1, 1]^n; outside, the nearest point inside plus the squared distance to it.

    EvoX's CEC2022 F9, F11 and F12 are NaN within rounding of a component's optimum, where they divide by the distance to it:
    such a point counts as infinitely bad, and the best value so far is that of its neighbours.
    """

    def __init__(self, problem: Problem, half_width: float, shift: torch.Tensor):
        super().__init__()
        self.problem, self.half_width, self.shift = problem, half_width, shift

    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        inside = pop.clamp(-1, 1)
        penalty = ((self.half_width * (pop - inside)) ** 2).sum(1)
        fitness = self.problem.evaluate(self.half_width * (inside - self.shift)) + penalty
        return fitness.nan_to_num(nan=torch.inf)


def make_problem(function: str, n: int) -> Problem:
    """EvoX's function with its optimum moved by up to .4 of the half width in every coordinate, or CEC2022's own shifts."""
    if function in CEC_FUNCTIONS:
        return UnitBox(CEC2022(CEC_FUNCTIONS[function], n), 100.0, torch.zeros(n))
    cls, half_width = FUNCTIONS[function]
    generator = torch.Generator().manual_seed(len(function) * 1000 + n)
    shift = 0.8 * torch.rand(n, generator=generator) - 0.4
    return UnitBox(cls(), half_width, torch.zeros(n) if function == "Schwefel" else shift)


class BestMonitor(Monitor):
    """Evaluations so far, and the best fitness among them."""

    def __init__(self):
        super().__init__()
        self.best = Mutable(torch.tensor(torch.inf))
        self.evaluations = Mutable(torch.tensor(0))

    def pre_tell(self, fitness):
        self.best = torch.minimum(self.best, fitness.min())
        self.evaluations = self.evaluations + fitness.shape[0]


def curve(
    algorithm: str, function: str, n: int, budget: int, seeds: int
) -> list[tuple[int, list[float]]]:
    """Best fitness of every seed after each step within the budget."""
    torch.manual_seed(0)
    workflows = [
        StdWorkflow(algorithms(n, budget)[algorithm](), make_problem(function, n), BestMonitor())
        for _ in range(seeds)
    ]
    points = []
    if algorithm.startswith("CMA-ES"):  # its state is not in tensors: one seed after another
        while int(workflows[0].monitor.evaluations) + workflows[0].algorithm.pop_size <= budget:
            for workflow in workflows:
                workflow.step()
            points.append(
                (int(workflows[0].monitor.evaluations), [float(w.monitor.best) for w in workflows])
            )
        return points
    parameters, buffers = torch.func.stack_module_state(workflows)
    state = {**parameters, **buffers}
    init_step, step = (
        vmap(use_state(f), randomness="different")
        for f in (workflows[0].init_step, workflows[0].step)
    )
    state = init_step(state)
    while int(state["monitor.evaluations"][0]) <= budget:
        points.append((int(state["monitor.evaluations"][0]), state["monitor.best"].tolist()))
        if points[-1][0] == budget:
            break
        state = step(state)
    return points


def run_case(case: tuple[str, str, int, int], folder: Path, seeds: int) -> str:
    """Run one case and write its curves, unless the file is there with as many seeds."""
    algorithm, function, n, budget = case
    path = folder / f"{algorithm.split(' (')[0].replace(' ', '-')}_{function}_{n}_{budget}.csv"
    if path.exists() and len({row.split(",")[4] for row in path.read_text().splitlines()}) >= seeds:
        return f"{path.name} is there"
    torch.set_num_threads(1)
    start = time.perf_counter()
    points = curve(algorithm, function, n, budget, seeds)
    seconds = time.perf_counter() - start
    rows = [
        (algorithm, function, n, budget, seed, evaluations, f"{best:.6g}", f"{seconds:.1f}")
        for evaluations, bests in points
        for seed, best in enumerate(bests)
    ]
    partial = path.with_suffix(".part")
    with partial.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    partial.rename(path)
    return f"{path.name} {seconds:.0f} s"


def cases(
    only: list[str] | None, dimensions: list[int], budgets: list[int]
) -> list[tuple[str, str, int, int]]:
    """Algorithm, function, dimension and budget of every case; CEC2022's F6, F7 and F8 do not exist in 2 dimensions."""
    return [
        (algorithm, function, n, budget)
        for budget, n, function in itertools.product(
            budgets, dimensions, [*FUNCTIONS, *CEC_FUNCTIONS]
        )
        if not (n == 2 and CEC_FUNCTIONS.get(function) in (6, 7, 8))
        for algorithm in algorithms(n, budget)
        if not only or algorithm in only
    ]


def run(folder: Path, seeds: int, processes: int, todo: list[tuple[str, str, int, int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        tasks = pool.map(run_case, todo, itertools.repeat(folder), itertools.repeat(seeds))
        for index, line in enumerate(tasks, 1):
            print(f"{index}/{len(todo)} {line}", flush=True)


def read_curves(folder: Path) -> dict[tuple, dict[str, np.ndarray]]:
    """Per (budget, n, function), per algorithm, a row (evaluations, best of each seed) for every step."""
    curves: dict[tuple, dict[str, np.ndarray]] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        algorithm, function, n, budget = rows[0][:4]
        values = np.array(
            [[float(row[4]), float(row[5]), float(row[6])] for row in rows]
        )  # seed, evaluations, best
        by_step = [
            np.concatenate([[evaluations], values[values[:, 1] == evaluations][:, 2]])
            for evaluations in np.unique(values[:, 1])
        ]
        curves.setdefault((int(budget), int(n), function), {})[algorithm] = np.stack(by_step)
    return curves


def report(folder: Path) -> None:
    """Print tables of mean ranks with their tests; write medians.csv and a plot per budget and dimension."""
    curves = read_curves(folder)
    if not curves:
        raise SystemExit(f"{folder}: expected the files of evox_functions.py run, found none")
    folder = folder / "report"
    folder.mkdir(exist_ok=True)
    with (folder / "medians.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            [
                "budget",
                "n",
                "function",
                "algorithm",
                "seeds",
                "lower quartile",
                "median",
                "upper quartile",
            ]
        )
        for (budget, n, function), by_algorithm in sorted(curves.items()):
            for name, steps in by_algorithm.items():
                quartiles = [f"{q:.6g}" for q in np.quantile(steps[-1, 1:], [0.25, 0.5, 0.75])]
                table.writerow([budget, n, function, name, steps.shape[1] - 1, *quartiles])
    for budget in BUDGETS:
        names = list(algorithms(2, budget))
        of_budget = {key: value for key, value in curves.items() if key[0] == budget}
        # The default search on the cases that it has run, and the others, as long as it has not run on all.
        for some in (names, names[1:]) if names[0] == "EvoGM" else (names,):
            complete = {
                key: value
                for key, value in of_budget.items()
                if all(name in value for name in some)
            }
            if complete:
                print_ranks(budget, complete, some)
        for n in DIMENSIONS:
            plot(
                {key[2]: value for key, value in curves.items() if key[:2] == (budget, n)},
                folder / f"{budget}_{n}.png",
                n,
            )


def print_ranks(budget: int, complete: dict, names: list[str]) -> None:
    """Mean ranks of the medians over seeds, Friedman's test with Nemenyi's distance, and Wilcoxon against the first name with
    Holm: EvoGM, or the published method."""
    from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon

    keys = list(complete)
    seeds = min(
        len(steps[-1]) - 1 for by_algorithm in complete.values() for steps in by_algorithm.values()
    )
    # As many seeds of all: a median of fewer varies more.
    medians = np.array(
        [[np.median(complete[key][name][-1, 1 : 1 + seeds]) for name in names] for key in keys]
    )  # (cases, names)
    ranks = np.stack([rankdata(row) for row in medians])
    statistic, p = friedmanchisquare(*medians.T)
    k, cases = len(names), len(keys)
    distance = (
        studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2) * np.sqrt(k * (k + 1) / (6 * cases))
    )
    # Wilcoxon compares sizes of differences, and the functions' values differ by many orders of magnitude: logarithms.
    logs = np.log10(medians - medians.min(1, keepdims=True) + 1e-12 + 1e-6 * np.abs(medians))
    tests = {
        name: wilcoxon(logs[:, 0], logs[:, index]).pvalue
        for index, name in enumerate(names)
        if index
    }
    corrected = holm(tests)
    what = f"{budget} evaluations, {cases} cases, {seeds} seeds"
    print(f"\n{what}: Friedman chi2 {statistic:.1f}, p {p:.1e}; Nemenyi distance {distance:.2f}\n")
    dimensions = sorted({n for _, n, _ in keys})
    print(
        f"| algorithm | mean rank | {' | '.join(f'n={n}' for n in dimensions)} | {names[0]} better / worse | Wilcoxon, Holm |"
    )
    print("| --- |" + " ---: |" * (len(dimensions) + 3))
    for index in np.argsort(ranks.mean(0)):
        name = names[index]
        by_n = [f"{ranks[[key[1] == n for key in keys], index].mean():.2f}" for n in dimensions]
        duel = (
            ""
            if index == 0
            else f"{(medians[:, 0] < medians[:, index]).sum()} / {(medians[:, 0] > medians[:, index]).sum()}"
        )
        p_value = f"{corrected[name]:.1e}" if name in corrected else ""
        print(
            f"| {name} | {ranks[:, index].mean():.2f} | {' | '.join(by_n)} | {duel} | {p_value} |"
        )


def plot(curves: dict[str, dict[str, np.ndarray]], path: Path, n: int) -> None:
    """Medians with quartile bands against evaluations, a panel per function, as distance from the best value known."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 5, figsize=(22, 15), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (function, by_algorithm) in zip(axes.flat, curves.items(), strict=False):
        least = CEC_MINIMA.get(function, 0.0)
        for colour, name in enumerate(algorithms(2, BUDGETS[0])):
            if name not in by_algorithm:
                continue
            steps = by_algorithm[name]
            low, middle, high = np.quantile(
                np.maximum(steps[:, 1:] - least, 1e-8), [0.25, 0.5, 0.75], axis=1
            )
            axis.plot(
                steps[:, 0],
                middle,
                color=f"C{colour}",
                label=name,
                linewidth=2.5 if "EvoGM" in name else 1,
            )
            axis.fill_between(steps[:, 0], low, high, color=f"C{colour}", alpha=0.12)
        axis.set(title=f"{function}, n = {n}", yscale="log", xlabel="evaluations")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--folder", type=Path, default=Path("runs/evox_functions"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--dimensions",
        nargs="*",
        type=int,
        default=DIMENSIONS,
        choices=DIMENSIONS,
        help="instead of all",
    )
    parser.add_argument(
        "--budgets", nargs="*", type=int, default=BUDGETS, choices=BUDGETS, help="instead of both"
    )
    parser.add_argument(
        "--algorithms",
        nargs="*",
        choices=list(algorithms(2, BUDGETS[0])),
        help="by name, instead of all",
    )
    arguments = parser.parse_args()
    if arguments.command == "run":
        todo = cases(arguments.algorithms, arguments.dimensions, arguments.budgets)
        run(arguments.folder, arguments.seeds, arguments.processes, todo)
    else:
        report(arguments.folder)


if __name__ == "__main__":
    main()
