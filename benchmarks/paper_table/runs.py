"""What finished run folders say in the rows of the paper's tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

NAMES = {"base": "base", "average": "Model Soup"}  # the paper's, by the kind of a row of ours


class Run(NamedTuple):
    """A finished run.

    :param folder: where it is.
    :param base: of its settings.
    :param seed: of its search.
    :param algorithm: of its search.
    :param evaluations: of merges that it made.
    :param seconds: that they took.
    :param rows: by the name of a row in the paper, test scores by task.
    """

    folder: Path
    base: str
    seed: int
    algorithm: str
    evaluations: int
    seconds: float
    rows: dict[str, dict[str, float]]

    @property
    def tasks(self) -> set[str]:
        """The names of its tasks."""
        return set(self.rows["base"])


def read_run(folder: Path) -> Run:
    """A run from its folder.

    :raises ValueError: if it is not finished.
    """
    if not (folder / "result.json").is_file():
        raise ValueError(f"runs: expected a finished run in {folder}, found no result.json")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    rows = {}
    best_on_dev = None
    for row in result["scores"]:
        if row["kind"] in NAMES:
            rows[NAMES[row["kind"]]] = row["test"]
        elif row["kind"] == "expert":
            score = mean(list(row["dev"].values()))
            if best_on_dev is None or score > best_on_dev:
                best_on_dev = score
                rows["single best"] = row["test"]
        elif row["kind"] == "merge":
            rows[result["algorithm"]] = row["test"]
    base = result.get("sources", {}).get("base") or settings["base"]
    evaluations, seconds = result["evaluations"], result["seconds"]
    return Run(folder, base, result["seed"], result["algorithm"], evaluations, seconds, rows)


def mean(values: Sequence[float]) -> float:
    """The mean of some numbers."""
    return sum(values) / len(values)
