"""Is EvoGM better here? Every search under one protocol: the same base, experts, dev examples and number of evaluations.

A case is one method with one seed. It searches on dev until its evaluations are spent, and its answer is scored on test; so
is the best point on dev, if that is another one, but only to be reported. Then its files are written: `METHOD_seedK.csv`, a
line per evaluation (full evaluations spent, dev score, seconds since the start, coefficients), and `METHOD_seedK.json`, the
result. Cases that have their files are not run again; an interrupted case at `--level real` goes on from its journal. A method
whose population does not divide the budget ends with a part of one.

    python benchmarks/compare.py run --level small                     # 20 seeds x all search methods, 160 evaluations
    python benchmarks/compare.py run --level small --group ablations   # and: parts, design, scores, sweeps, controls
    python benchmarks/compare.py run --level small --own-questions     # every seed also draws its own questions
    python benchmarks/compare.py run --level small --regmean           # around the RegMean merge, for every method
    python benchmarks/compare.py report --level small                  # tables and plots from the files

The methods are in `compare_methods.py`, the report in `compare_report.py`, its statistics and plots in `compare_runs.py` and
`compare_plots.py`. Level small is `small_level.py`: a model of half a million parameters. Level real is
SmolLM2-135M with the shipped experts, on their tasks and three that no expert has seen.
"""

import argparse
import csv
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from compare_methods import CONTROLLED, GROUPS, METHODS
from evox.core import Problem
from evox.workflows import StdWorkflow

from evox_evogm.algorithms import evogm, gaussian_process, surrogate
from evox_evogm.problems import Racing
from evox_evogm.resume.journal import Journal

RUNS = Path("runs/compare")
BUDGET = 160


def default_pop_size(n: int) -> int:
    """20, as published, but no fewer than base, experts and average: swarms never leave the span of where they start."""
    return max(20, n + 2)


@dataclass(frozen=True)
class Case:
    """What is searched, how, and with how many evaluations."""

    level: str
    method: str
    seed: int
    n: int
    budget: int = BUDGET
    pop_size: int = 20
    control: str = ""
    """`random`: adapters of random numbers of the same norms. `shuffled`: the answers of dev are wrong."""
    own_questions: bool = False
    """Whether dev and test are questions that the seed draws, the same for all methods, instead of one set for all seeds."""
    regmean: bool = False
    """Whether the experts are regressed on their own dev questions, and the search takes place around the RegMean merge."""
    threads: int = 1

    @property
    def path(self) -> Path:
        """Of its files, without suffix."""
        what = f"n{self.n}_{self.budget}" + (f"_{self.control}" if self.control else "")
        what += f"_P{self.pop_size}" if self.pop_size != default_pop_size(self.n) else ""
        what += "_own" if self.own_questions else ""
        what += "_regmean" if self.regmean else ""
        return RUNS / self.level / what / f"{self.method}_seed{self.seed}"


@lru_cache(maxsize=2)
def level(
    name: str,
    n: int,
    control: str,
    racing: Racing | None,
    draw: int | None = None,
    regmean: bool = False,
):
    """The dev problem and the test tasks."""
    settings = {"control": control, "racing": racing, "objectives": "outcomes", "regmean": regmean}
    if name == "small":
        import small_level

        return small_level.make_problem(n, draw=draw, **settings), small_level.tasks(
            n, "test", draw
        )
    import real_level

    return real_level.make_problem(n, **settings), real_level.tasks(n, "test")


@lru_cache
def commit() -> str:
    """The commit of this file, with a + if something has been changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    found, changed = (
        subprocess.run([*git, *command], capture_output=True, text=True).stdout.strip()
        for command in (
            ["rev-parse", "--short", "HEAD"],
            ["status", "--porcelain", "--untracked-files=no"],
        )
    )
    return found + ("+" if changed else "")


class Spent(Exception):
    """The budget is, in the middle of a population."""


class Row(NamedTuple):
    """An evaluation: full evaluations spent until then, score, seconds since the start, coefficients."""

    spent: float
    score: float
    seconds: float
    point: list[float]


class Recorder(Problem):
    """Hands populations to the problem until the budget is spent, and keeps what was evaluated.

    Methods search [-1, 1]^n, which is moved to where the problem's box is.
    """

    def __init__(self, problem: Problem, budget: int, outcomes: bool):
        super().__init__()
        self.problem, self.outcomes = problem, outcomes
        self.rows: list[Row] = []
        self.start, self.evaluation_seconds, self.budget_used = time.perf_counter(), 0.0, 0.0
        self.basis: torch.Tensor | None = None
        self.center = sum(problem.box) / 2
        self.until = budget

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        pop = self.coefficients(pop)
        start = time.perf_counter()
        racing = self.problem.racing is not None
        fitness = self.problem.evaluate(
            pop if racing else pop[: int(self.until - self.budget_used)]
        )
        self.evaluation_seconds += time.perf_counter() - start
        known = (
            fitness[:, 1:].isfinite().float().mean(1)
        )  # of what failed nothing is known, and all was asked
        shares = torch.where(known > 0, known, 1.0) if racing else torch.ones(len(fitness))
        seconds = time.perf_counter() - self.start
        for share, score, point in zip(
            shares.tolist(), fitness[:, 0].tolist(), pop.tolist(), strict=False
        ):
            self.budget_used += share
            if self.budget_used > self.until + 1e-6:
                raise Spent
            self.rows.append(Row(self.budget_used, score, seconds, point))
        if len(fitness) < len(pop):
            raise Spent
        return fitness if self.outcomes else fitness[:, 0]

    def coefficients(self, points: torch.Tensor) -> torch.Tensor:
        """What a method's points stand for."""
        return (points if self.basis is None else points @ self.basis) + self.center


def best_rows(rows: list, count: int) -> torch.Tensor:
    """The points of the best `count` evaluations, of equals the earlier."""
    order = sorted(range(len(rows)), key=lambda index: -rows[index].score)[:count]
    return torch.tensor([rows[index].point for index in order])


def search(case: Case, problem: Problem) -> tuple[Recorder, torch.Tensor]:
    """Spend the budget; returns the evaluations and the answer: what the algorithm says, or the best on dev."""
    method = METHODS[case.method]
    pop_size, budget = (
        method.settings.get(name, getattr(case, name)) for name in ("pop_size", "budget")
    )
    recorder = Recorder(problem, budget, method.outcomes)
    for round_ in range(1, method.rounds + 1):
        torch.manual_seed(1000 * case.seed + round_)
        if round_ > 1:
            recorder.basis = best_rows(recorder.rows, case.n) - recorder.center
        recorder.until = budget * round_ // method.rounds
        settings = {"problem": problem} if method.outcomes else {}
        algorithm = method.make(case.n, pop_size, **settings)
        workflow = StdWorkflow(algorithm, recorder, opt_direction="max", device="cpu")
        try:
            workflow.init_step()
            while recorder.budget_used < recorder.until:
                workflow.step()
        except Spent:
            pass
    if hasattr(algorithm, "answer") and getattr(
        algorithm, "screened", True
    ):  # the published EvoGM's is the best on dev
        return recorder, recorder.coefficients(workflow.algorithm.answer())
    return recorder, best_rows(recorder.rows, 1)[0]


@contextmanager
def other_constants(values: dict) -> Iterator[None]:
    """Inside the block, constants of the search have these values, wherever they are."""
    places = [
        (module, name)
        for module in (evogm, surrogate, gaussian_process)
        for name in values
        if hasattr(module, name)
    ]
    before = [getattr(module, name) for module, name in places]
    if missing := set(values) - {name for _, name in places}:
        raise ValueError(
            f"constants: expected some of evogm.py, surrogate.py or gaussian_process.py, found {missing}"
        )
    try:
        for module, name in places:
            setattr(module, name, values[name])
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def run_case(case: Case) -> str:
    """Run one case and write its files, unless they are there."""
    result_path = case.path.with_name(case.path.name + ".json")
    if result_path.exists():
        return f"{case.path.name} is there, from commit {json.loads(result_path.read_text())['commit']}"
    torch.set_num_threads(case.threads)
    draw = case.seed if case.own_questions else None
    problem, test_tasks = level(
        case.level, case.n, case.control, METHODS[case.method].racing, draw, case.regmean
    )
    case.path.parent.mkdir(parents=True, exist_ok=True)
    journal = None
    problem._known.clear()
    # Minutes long: what a killed process evaluated is recalled, and the search repeated from its seed.
    if case.level == "real":
        journal = Journal(case.path.with_name(case.path.name + ".jsonl"))
        problem.load_history(journal.records)
        problem.on_evaluations = lambda block: journal.append(
            [e.as_record() for e in block if e.seconds]
        )
    earlier = (
        sum(record["seconds"] for record in journal.records) if journal else 0.0
    )  # of a killed process
    with other_constants(METHODS[case.method].constants):
        recorder, answer = search(case, problem)
    seconds = time.perf_counter() - recorder.start + earlier
    best = best_rows(recorder.rows, 1)[0]
    test = {
        name: float(scores.mean())
        for name, scores in problem.score_tasks(answer, test_tasks).items()
    }
    test_of_best = test
    if not torch.equal(answer, best):
        test_of_best = {
            name: float(scores.mean())
            for name, scores in problem.score_tasks(best, test_tasks).items()
        }
    dev = {name: float(scores.mean()) for name, scores in problem.score_tasks(answer).items()}
    with case.path.with_name(case.path.name + ".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["evaluation", "score", "seconds", *(f"coefficient {k}" for k in range(case.n))]
        )
        for row in recorder.rows:
            point = (f"{value:.6g}" for value in row.point)
            table.writerow(
                [
                    f"{row.budget_used:.6g}",
                    f"{row.score:.6g}",
                    f"{row.seconds + earlier:.3f}",
                    *point,
                ]
            )
    result = {
        "method": case.method,
        "seed": case.seed,
        "evaluations": len(recorder.rows),
        "dev": sum(dev.values()) / len(dev),
        "test": sum(test.values()) / len(test),
        "test of the best on dev": sum(test_of_best.values()) / len(test_of_best),
        "dev by task": dev,
        "test by task": test,
        "seconds": seconds,
        "seconds of evaluation": recorder.evaluation_seconds + earlier,
        "commit": commit(),
        "dtype": str(problem.language_model.model.dtype).removeprefix("torch."),
        "answer": answer.tolist(),
    }
    partial_path = result_path.with_suffix(".part")
    partial_path.write_text(json.dumps(result, indent=1))
    partial_path.rename(result_path)
    if journal is not None:
        journal.close()
    return f"{case.path.name}: dev {result['dev']:.3f} test {result['test']:.3f}, {seconds:.1f} s"


def run(cases: list[Case], processes: int) -> None:
    """Run cases, several at a time."""
    start = time.time()
    if processes == 1:
        results = map(run_case, cases)
        for index, line in enumerate(results, 1):
            print(f"{index}/{len(cases)} {time.time() - start:.0f} s  {line}", flush=True)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for index, done in enumerate(
            as_completed([pool.submit(run_case, case) for case in cases]), 1
        ):
            print(f"{index}/{len(cases)} {time.time() - start:.0f} s  {done.result()}", flush=True)


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """The cases that the command line names, seeds first, so that what is done is comparable at any time."""
    names = list(dict.fromkeys(arguments.methods or ())) or [
        name
        for name, method in METHODS.items()
        if (
            name in CONTROLLED if arguments.group == "controls" else method.group == arguments.group
        )
    ]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise SystemExit(
            f"methods: expected some of {', '.join(map(repr, METHODS))}, found {unknown[0]!r}"
        )
    fixed = [name for name in names if "pop_size" in METHODS[name].settings]
    if arguments.pop_size != default_pop_size(arguments.n) and fixed:
        raise SystemExit(
            f"pop-size: expected methods without a population of their own, found {fixed[0]!r}"
        )
    settled = [name for name in names if "budget" in METHODS[name].settings]
    if arguments.budget != BUDGET and settled:
        raise SystemExit(
            f"budget: expected methods without a budget of their own, found {settled[0]!r}"
        )
    sizes = {name: METHODS[name].settings.get("pop_size", arguments.pop_size) for name in names}
    large = [
        name
        for name in names
        if sizes[name] > METHODS[name].settings.get("budget", arguments.budget)
    ]
    if large:
        raise SystemExit(
            f"budget: expected at least one population of {large[0]!r}, {sizes[large[0]]}, found {arguments.budget}"
        )
    controls = ("random", "shuffled") if arguments.group == "controls" else ("",)
    names_of_settings = ("n", "budget", "pop_size", "own_questions", "regmean", "threads")
    settings = {name: getattr(arguments, name) for name in names_of_settings}
    return [
        Case(arguments.level, name, seed, control=control, **settings)
        for control in controls
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        for name in names
    ]


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument."""

    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, found {text}")
        return int(text)

    return whole_number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--level", choices=["small", "real"], default="small")
    parser.add_argument("--group", choices=[*GROUPS, "controls"], default="search")
    parser.add_argument("--methods", nargs="+", help="by name, instead of a group")
    parser.add_argument("--seeds", type=at_least(1), help="20 at level small, 3 at level real")
    parser.add_argument(
        "--first-seed",
        type=at_least(0),
        default=0,
        help="seeds from 100 on are for trying things out",
    )
    parser.add_argument(
        "--n",
        type=at_least(2),
        help="experts: 10 at level small (at most 64), 8 at level real (at most 8)",
    )
    parser.add_argument("--budget", type=at_least(2), default=BUDGET, help="evaluations")
    parser.add_argument(
        "--pop-size", type=at_least(2), help="of methods without one of their own: 20, or n + 2"
    )
    parser.add_argument(
        "--own-questions",
        action="store_true",
        help="each seed has its own dev and test questions (level small)",
    )
    parser.add_argument(
        "--regmean",
        action="store_true",
        help="search around the RegMean merge of the experts' own dev questions",
    )
    parser.add_argument("--processes", type=at_least(1), help="2 at level small, 1 at level real")
    parser.add_argument(
        "--threads", type=at_least(1), help="of each process: 1 at level small, 2 at level real"
    )
    arguments = parser.parse_args()
    small = arguments.level == "small"
    if arguments.own_questions and not small:
        parser.error("--own-questions: level real has one set of questions")
    arguments.seeds = arguments.seeds or (20 if small else 3)
    arguments.n = arguments.n or (10 if small else 8)
    arguments.pop_size = arguments.pop_size or default_pop_size(arguments.n)
    if arguments.n > (64 if small else 8):
        parser.error(
            f"--n: expected at most {64 if small else 8}, as many as there are, found {arguments.n}"
        )
    arguments.processes = arguments.processes or (2 if small else 1)
    arguments.threads = arguments.threads or (1 if small else 2)
    if arguments.command == "run":
        run(cases_of(arguments), arguments.processes)
    else:
        from compare_report import report

        report(RUNS / arguments.level, {name: method.group for name, method in METHODS.items()})


if __name__ == "__main__":
    main()
