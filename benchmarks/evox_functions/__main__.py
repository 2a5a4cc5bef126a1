"""EvoGM beside EvoX's own algorithms and CMA-ES on test functions.

Every algorithm gets the same number of evaluations (CMA-ES and SurrogateEvoGM as many as their own
populations divide) on seven functions of EvoX and on CEC2022, in 2, 10 and 20 dimensions, 15 seeds
each. Seeds run in one vmap where the algorithm allows.

    python -m benchmarks.evox_functions run       # curves to runs/evox_functions; can be resumed
    python -m benchmarks.evox_functions report    # tables and plots from these files
"""

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.evox_functions.algorithms import LARGE_BUDGET, SMALL_BUDGET, algorithms, names
from benchmarks.evox_functions.curves import Case, run_case
from benchmarks.evox_functions.functions import CEC_FUNCTIONS, FUNCTIONS, exists

SEEDS = 15
BUDGETS = (SMALL_BUDGET, LARGE_BUDGET)
DIMENSIONS = (2, 10, 20)


def cases_of(only: list[str] | None, dimensions: list[int], budgets: list[int]) -> list[Case]:
    """The cases of some algorithms, or of all."""
    cases = []
    for budget, n in itertools.product(budgets, dimensions):
        for function in [*FUNCTIONS, *CEC_FUNCTIONS]:
            for algorithm in algorithms(n, budget):
                if exists(function, n) and (not only or algorithm in only):
                    cases.append(Case(algorithm, function, n, budget))
    return cases


def run(folder: Path, seeds: int, processes: int, cases: list[Case]) -> None:
    """Run cases, several at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        lines = pool.map(run_case, cases, itertools.repeat(folder), itertools.repeat(seeds))
        for index, line in enumerate(lines, 1):
            print(f"{index}/{len(cases)} {line}", flush=True)


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
        "--algorithms", nargs="*", choices=names(SMALL_BUDGET), help="by name, instead of all"
    )
    arguments = parser.parse_args()
    if arguments.command == "run":
        cases = cases_of(arguments.algorithms, arguments.dimensions, arguments.budgets)
        run(arguments.folder, arguments.seeds, arguments.processes, cases)
    else:
        from benchmarks.evox_functions.report import report

        report(arguments.folder)


if __name__ == "__main__":
    main()
