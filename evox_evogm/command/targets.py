"""What `evogm score` scores: adapters, runs, experts, the base, and coefficients, as words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evox_evogm.command.adapter import ADAPTER
from evox_evogm.command.run_folder import has_begun
from evox_evogm.command.scores import Kind
from evox_evogm.command.strict_settings import near_name
from evox_evogm.problems.adapters.read_adapter import CONFIG
from evox_evogm.problems.checkpoints.checkpoint_files import is_checkpoint

BASE, AVERAGE = "base", "average"


@dataclass(frozen=True)
class Target:
    """A model to score: coefficients over experts, by their names.

    :param name: of its row.
    :param kind: of its row.
    :param coefficients: of the experts that take part.
    """

    name: str
    kind: Kind
    coefficients: Mapping[str, float]


@dataclass(frozen=True)
class Targets:
    """Models to score.

    :param models: in the order of the words.
    :param adapters: the folders of adapters that are no experts of the settings, by name.
    """

    models: list[Target]
    adapters: dict[str, Path]


def read_targets(words: Sequence[str], experts: Mapping[str, Path]) -> Targets:
    """The models that words name.

    A word is `base`, `average`, the name of an expert, the folder of an adapter or a whole model,
    that of a finished run, or coefficients: one for each expert, or some as name=value.

    :param words: nothing stands for base, all experts and their average.
    :param experts: of the settings, by name.
    :raises ValueError: if a word is none of these.
    """
    targets = Targets([], {})
    for word in words or [BASE, *experts, AVERAGE]:
        targets.models.append(_read(word, experts, targets.adapters))
    return targets


def _read(word: str, experts: Mapping[str, Path], adapters: dict[str, Path]) -> Target:
    path = Path(word)
    # A base often stands in a folder `base`: this word is its row, and ./base the folder.
    if (path / CONFIG).is_file() or (word not in (BASE, AVERAGE) and is_checkpoint(path)):
        return _adapter(word, path, experts, adapters)
    if path.is_dir() and has_begun(path):
        if not (path / ADAPTER / CONFIG).is_file():
            expected = f"expected an adapter in the run folder {word}"
            advice = "is the run finished? Of full checkpoints name an exported model"
            raise ValueError(f"score: {expected}, found none; {advice}")
        return _adapter(word, path / ADAPTER, experts, adapters)
    if word in experts:
        return Target(word, "expert", {word: 1.0})
    if word == BASE:
        return Target(word, "base", {})
    if word == AVERAGE:
        return Target(word, "average", dict.fromkeys(experts, 1 / len(experts)))
    return Target(word, "merge", _coefficients(word, list(experts)))


def _adapter(
    word: str, folder: Path, experts: Mapping[str, Path], adapters: dict[str, Path]
) -> Target:
    for name, expert in experts.items():
        if expert.resolve() == folder.resolve():
            return Target(name, "expert", {name: 1.0})
    name = word.rstrip("/")
    if name in experts:
        name = f"./{name}"
    adapters[name] = folder
    return Target(name, "merge", {name: 1.0})


def _coefficients(word: str, experts: Sequence[str]) -> dict[str, float]:
    """The coefficients in a word such as `0.5,0.5` or `first=0.5,second=1`."""
    parts = word.split(",")
    named: dict[str, float] = {}
    for place, part in enumerate(parts):
        name, sign, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (sign and name not in experts):
            kinds = "base, average, an expert, an adapter or run folder, or coefficients"
            known = f"such as {','.join(f'{name}=0.5' for name in experts[:2])}"
            hint = near_name(part.partition("=")[0], [BASE, AVERAGE, *experts])
            raise ValueError(f"score: expected {kinds} {known}, found {word!r}{hint}")
        if not sign and place < len(experts):
            name = experts[place]
        named[name] = value
    if len(named) != len(parts) or ("=" not in word and len(parts) != len(experts)):
        expected = f"expected {len(experts)} coefficients, or some as name=value"
        raise ValueError(f"score: {expected}, found {word!r}")
    return named
