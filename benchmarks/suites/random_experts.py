"""Write adapters of random numbers, with the names, settings and norms of given ones.

    python -m benchmarks.suites.random_experts my-adapters runs/random

A search that gains as much on these has learned nothing from what the experts know.
"""

import argparse
import shutil
from pathlib import Path

from benchmarks.suites.controls import random_adapters
from evox_evogm.problems import find_adapters


def write_random(experts: str | Path, out: Path) -> None:
    """Write a random adapter for each of a folder.

    :param experts: a folder of adapters.
    :param out: a new folder.
    :raises FileExistsError: if the folder is there.
    """
    folders = list(find_adapters(experts).values())
    out.mkdir(parents=True)
    with random_adapters(folders) as made:
        for name, folder in made.items():
            shutil.copytree(folder, out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experts", type=Path, help="a folder of adapters")
    parser.add_argument("out", type=Path, help="a new folder")
    arguments = parser.parse_args()
    write_random(arguments.experts, arguments.out)


if __name__ == "__main__":
    main()
