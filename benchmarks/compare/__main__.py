"""Is EvoGM better here? Every search under one protocol.

The base, the experts, the dev examples and the number of evaluations are the same for all. A case
is one method with one seed: it searches on dev until its evaluations are used up, and the point
that it recommends is scored on test. Cases that have their files are not run again. A method whose
population does not divide the budget ends with a part of one.

    python -m benchmarks.compare run                    # 20 seeds x all searches, 160 evaluations
    python -m benchmarks.compare run --group ablations  # parts, design, scores, sweeps, controls
    python -m benchmarks.compare run --resampled-dev    # every seed draws dev sets of its own
    python -m benchmarks.compare run --regmean          # around the RegMean merge, for all methods
    python -m benchmarks.compare run --regmean --keep-experts   # and the experts as they are
    python -m benchmarks.compare run --suite smollm2    # instead of --suite synthetic
    python -m benchmarks.compare report                 # tables, and plots beside the files
    python -m benchmarks.compare report --resampled-dev --methods EvoGM CMA-ES --svg FILE

The methods are in `methods.py`, the suites in `benchmarks/suites`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from benchmarks.compare.cases import BUDGET, RUNS, Case, default_pop_size
from benchmarks.compare.methods import CONTROLLED, GROUPS, METHODS
from benchmarks.compare.search import run_case
from benchmarks.suites.anchors import REGMEANS
from benchmarks.suites.suite import SUITES


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument."""

    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, found {text}")
        return int(text)

    return whole_number


def by_suite(attribute: str) -> str:
    """A default that depends on the suite, for a line of help."""
    values = [f"{getattr(suite, attribute)} for {name}" for name, suite in SUITES.items()]
    return ", ".join(values)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--suite", choices=list(SUITES), default="synthetic")
    what = parser.add_argument_group("what is run")
    what.add_argument("--group", choices=[*GROUPS, "controls"], default="search")
    what.add_argument("--methods", nargs="+", help="by name, instead of a group")
    what.add_argument("--seeds", type=at_least(1), help=by_suite("seeds"))
    what.add_argument(
        "--first-seed",
        type=at_least(0),
        default=0,
        help="seeds from 100 on are for trying things out",
    )
    setting = parser.add_argument_group("setting")
    setting.add_argument(
        "--n", type=at_least(2), help=f"experts: {by_suite('n')}; at most {by_suite('max_n')}"
    )
    setting.add_argument("--budget", type=at_least(2), default=BUDGET, help="evaluations")
    setting.add_argument(
        "--pop-size", type=at_least(2), help="of methods without one of their own: 20, or n + 2"
    )
    setting.add_argument(
        "--resampled-dev",
        action="store_true",
        help="each seed draws its own dev and test questions (synthetic)",
    )
    setting.add_argument(
        "--dev-examples",
        type=at_least(1),
        default=0,
        help="dev questions a task, if not those of the suite; smollm2 then has 100 in test",
    )
    setting.add_argument(
        "--regmean",
        nargs="?",
        choices=REGMEANS,
        const="tasks",
        default="",
        help="search around the RegMean merge: on the experts' own dev questions and answers "
        "(tasks, the default), on all dev questions without answers, or on no text",
    )
    setting.add_argument(
        "--keep-experts",
        action="store_true",
        help="with --regmean, search the experts as they are beside the regressed ones",
    )
    setting.add_argument(
        "--limit",
        action="store_true",
        help="search on the test questions themselves: the limit of searches on others",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--processes", type=at_least(1), help=by_suite("processes"))
    machine.add_argument(
        "--threads", type=at_least(1), help=f"of each process: {by_suite('threads')}"
    )
    report = parser.add_argument_group("report")
    report.add_argument(
        "--svg",
        type=Path,
        help="instead of the report, write one plot of the setting and the methods to this file",
    )
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with the defaults of the suite where nothing is given."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    suite = SUITES[arguments.suite]
    if arguments.keep_experts and not arguments.regmean:
        parser.error("--keep-experts: expected --regmean beside it, found none")
    if arguments.limit and (arguments.group == "controls" or arguments.regmean == "prompts"):
        parser.error("--limit: expected no controls and no prompts of dev, which it replaces")
    if arguments.resampled_dev and not suite.can_resample:
        parser.error(f"--resampled-dev: {arguments.suite} has one set of questions")
    arguments.seeds = arguments.seeds or suite.seeds
    arguments.n = arguments.n or suite.n
    arguments.default_pop_size = default_pop_size(
        2 * arguments.n if arguments.keep_experts else arguments.n
    )
    arguments.pop_size = arguments.pop_size or arguments.default_pop_size
    arguments.processes = arguments.processes or suite.processes
    arguments.threads = arguments.threads or suite.threads
    if arguments.n > suite.max_n:
        parser.error(
            f"--n: expected at most {suite.max_n}, as many as there are, found {arguments.n}"
        )
    return arguments


def chosen_methods(arguments: argparse.Namespace) -> list[str]:
    """The methods that the command line names, or those of its group, once each."""
    if arguments.methods:
        names = list(dict.fromkeys(arguments.methods))
    elif arguments.group == "controls":
        names = list(CONTROLLED)
    else:
        names = [name for name, method in METHODS.items() if method.group == arguments.group]
    for name in names:
        if name not in METHODS:
            known = ", ".join(map(repr, METHODS))
            raise SystemExit(f"methods: expected some of {known}, found {name!r}")
    return names


def check_fit(arguments: argparse.Namespace, name: str) -> None:
    """Refuse a population size or a budget that a method cannot have."""
    method = METHODS[name]
    if arguments.pop_size != arguments.default_pop_size and method.pop_size:
        raise SystemExit(
            f"pop-size: expected methods without a population of their own, found {name!r}"
        )
    if arguments.budget != BUDGET and method.budget:
        raise SystemExit(f"budget: expected methods without a budget of their own, found {name!r}")
    pop_size = method.pop_size or arguments.pop_size
    if pop_size > (method.budget or arguments.budget):
        raise SystemExit(
            f"budget: expected at least one population of {name!r}, {pop_size}, "
            f"found {arguments.budget}"
        )


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """The cases that the command line names.

    Seeds come first, so that what is done is comparable at any time.
    """
    names = chosen_methods(arguments)
    for name in names:
        check_fit(arguments, name)
    controls = ("random", "shuffled") if arguments.group == "controls" else ("",)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    cases = []
    for control in controls:
        for seed in seeds:
            cases += [make_case(arguments, name, seed, control) for name in names]
    return cases


def make_case(arguments: argparse.Namespace, name: str, seed: int, control: str = "") -> Case:
    return Case(
        arguments.suite,
        name,
        seed,
        n=arguments.n,
        budget=arguments.budget,
        pop_size=arguments.pop_size,
        control=control,
        resampled_dev=arguments.resampled_dev,
        dev_examples=arguments.dev_examples,
        regmean=arguments.regmean,
        keep_experts=arguments.keep_experts,
        limit=arguments.limit,
        threads=arguments.threads,
    )


def run_together(cases: list[Case], processes: int) -> Iterator[str]:
    """Run cases, several at a time; a line for each that is done."""
    if processes == 1:
        yield from map(run_case, cases)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        submitted = [pool.submit(run_case, case) for case in cases]
        for done in as_completed(submitted):
            yield done.result()


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    folder = RUNS / arguments.suite
    if arguments.command == "run":
        start, cases = time.time(), cases_of(arguments)
        for index, line in enumerate(run_together(cases, arguments.processes), 1):
            print(f"{index}/{len(cases)} {time.time() - start:.0f} s  {line}", flush=True)
        return
    from benchmarks.compare.report import print_report, write_svg

    if arguments.svg:
        setting = make_case(arguments, "", 0).setting
        write_svg(folder / setting, chosen_methods(arguments), arguments.svg)
    else:
        print_report(folder, {name: method.group for name, method in METHODS.items()})


if __name__ == "__main__":
    sys.exit(main())
