"""Merges without a search, beside those of `benchmarks.compare`.

The base, experts, tasks and splits are the same. What a method leaves open (scales, densities) is
chosen on dev from a small grid, whose points count as evaluations. Test is scored once, for the
choice. A method that has its file in runs/compare/SUITE/nN_static is not run again.

    python -m benchmarks.static_merges --suite synthetic --mergekit /path/to/mergekit-yaml
    python -m benchmarks.compare report --suite synthetic     # shows them too

The methods are in `methods.py`; those of mergekit are left out where it is not installed.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.compare.__main__ import at_least
from benchmarks.compare.cases import RUNS
from benchmarks.compare.tables import print_static
from benchmarks.static_merges.by_mergekit import MERGEKIT
from benchmarks.static_merges.methods import SOURCES, static_methods
from benchmarks.static_merges.settings import LoadedSuite, Setting, mean
from benchmarks.suites.suite import SUITES


def choose(settings: Iterator[Setting], suite: LoadedSuite) -> dict:
    """Score every setting on dev, and the best of them on test."""
    best, best_scores, tried = None, {}, {}
    for setting in settings:
        scores = setting.score(suite.dev)
        tried[setting.name] = mean(scores)
        if best is None or mean(scores) > mean(best_scores):
            best, best_scores = setting, scores
    test = best.score(suite.test)
    return {
        "setting": best.name,
        "evaluations": len(tried),
        "dev of settings": tried,
        "dev": mean(best_scores),
        "test": mean(test),
        "dev by task": best_scores,
        "test by task": test,
    }


def run_method(
    name: str, method: Callable[[LoadedSuite], Iterator[Setting]], suite: LoadedSuite, path: Path
) -> None:
    """Run one method and write its file, unless it is there."""
    if path.exists():
        return
    start = time.perf_counter()
    source = SOURCES.get(name, "a single expert")
    result = {"method": name, "source": source, **choose(method(suite), suite)}
    result["seconds"] = time.perf_counter() - start
    partial_path = path.with_suffix(".part")
    partial_path.write_text(json.dumps(result, indent=1))
    partial_path.rename(path)
    scores = f"dev {result['dev']:.3f} test {result['test']:.3f}"
    print(f"{name} ({result['setting']}): {scores}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=list(SUITES), default="synthetic")
    parser.add_argument("--n", type=int, help="experts; by default those of benchmarks.compare")
    parser.add_argument(
        "--dev-examples",
        type=at_least(1),
        help="dev questions a task, if not those of the suite; smollm2 then has 100 in test",
    )
    parser.add_argument(
        "--mergekit", default=shutil.which("mergekit-yaml"), help="the command mergekit-yaml"
    )
    parser.add_argument("--methods", nargs="*", help="by name, instead of all")
    arguments = parser.parse_args()
    suite = SUITES[arguments.suite]
    arguments.n = arguments.n or suite.n
    if not 2 <= arguments.n <= suite.max_n:
        parser.error(f"--n: expected 2 to {suite.max_n}, as many as there are, found {arguments.n}")
    if arguments.mergekit is not None and shutil.which(arguments.mergekit) is None:
        parser.error(
            f"--mergekit: expected the command mergekit-yaml, found none at {arguments.mergekit}"
        )
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.mergekit is None:
        print(
            "mergekit-yaml: expected it on PATH or by --mergekit, found none; "
            f"without {', '.join(MERGEKIT)}"
        )
    torch.manual_seed(0)
    suite = LoadedSuite(arguments.suite, arguments.n, arguments.dev_examples)
    methods = static_methods(arguments.mergekit, suite.experts)
    for name in arguments.methods or []:
        if name not in methods:
            raise SystemExit(f"methods: expected some of {', '.join(methods)}, found {name!r}")
    setting = f"_dev{arguments.dev_examples}" if arguments.dev_examples else ""
    folder = RUNS / arguments.suite / f"n{arguments.n}_static{setting}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.methods or methods:
        run_method(name, methods[name], suite, folder / f"{name}.json")
    print_static(folder)


if __name__ == "__main__":
    main()
