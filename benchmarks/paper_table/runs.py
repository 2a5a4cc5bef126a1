"""What finished run folders say in the rows of the paper's tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from evox_evogm.command.relative_paths import place_of

NAMES = {"base": "base", "average": "Model Soup"}  # the paper's, by the kind of a row of ours


class Run(NamedTuple):
    """A finished run.

    :param folder: where it is.
    :param base: of its settings.
    :param parts: the base and the experts: where each is.
    :param seed: of its search.
    :param algorithm: of its search.
    :param evaluations: of merges that it made.
    :param seconds: that they took.
    :param rows: by the name of a row in the paper, test scores by task.
    """

    folder: Path
    base: str
    parts: tuple[str, ...]
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
    rows, experts = {}, []
    best_on_dev = None
    for row in result["scores"]:
        if row["kind"] in NAMES:
            rows[NAMES[row["kind"]]] = row["test"]
        elif row["kind"] == "expert":
            experts.append(row["name"])
            score = mean(list(row["dev"].values()))
            if best_on_dev is None or score > best_on_dev:
                best_on_dev = score
                rows["single best"] = row["test"]
        elif row["kind"] == "merge":
            rows[result["algorithm"]] = row["test"]
    sources = result.get("sources") or {}
    base = sources.get("base") or settings["base"]
    parts = (absolute_if_there(base, folder), *places_of(experts, sources, settings, folder))
    evaluations, seconds = result["evaluations"], result["seconds"]
    seed, algorithm = result["seed"], result["algorithm"]
    return Run(folder, base, parts, seed, algorithm, evaluations, seconds, rows)


def places_of(
    names: Sequence[str], sources: Mapping[str, str], settings: Mapping, folder: Path
) -> list[str]:
    """Where each expert of a run is, with its name, in the order of the names.

    :param names: of the experts.
    :param sources: what was read from the hub, at its commit.
    :param settings: of the run.
    :param folder: of the run, from which paths start.
    """
    given = settings.get("experts", "")
    places = []
    for name in sorted(names):
        place = given
        if isinstance(given, dict):
            place = given.get(name, "")
        elif isinstance(given, list):
            place = next((path for path in given if Path(str(path)).name == name), "")
        source = sources.get(f"expert {name}") or absolute_if_there(str(place), folder)
        places.append(f"{name}: {source}")
    return places


def absolute_if_there(word: str, folder: Path) -> str:
    """A path that is there as an absolute one, any other word as it is."""
    place = place_of(word, folder)
    return str(place.resolve()) if word and place.exists() else word


def mean(values: Sequence[float]) -> float:
    """The mean of some numbers."""
    return sum(values) / len(values)
