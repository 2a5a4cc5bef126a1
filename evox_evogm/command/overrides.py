"""Settings on the command line: `key=value` words, which replace what a settings file says."""

from collections.abc import Sequence
from typing import Any

import yaml


def apply_overrides(values: dict, words: Sequence[str], load=yaml.safe_load) -> None:
    """Put `key=value` words into a table of settings.

    Keys of inner tables follow a dot, as in `search.box_growth=0`, and entries of a list have
    numbers from 0, as in `tasks.0.dev=8`. Values are YAML; nothing, as in `regmean=`, is null.

    :param values: the table, which is changed.
    :param words: the words.
    :param load: reads the YAML of a value.
    :raises ValueError: if a word has another form, or leads to no table or entry.
    """
    for word in words:
        key, sign, text = word.partition("=")
        names = key.strip().split(".")
        if not sign or not all(names):
            expected = "expected settings as key=value, such as budget=80 or tasks.0.dev=8"
            raise ValueError(f"settings: {expected}, found {word!r}")
        _set(values, names, _parse(text, word, load), word)


def _parse(text: str, word: str, load) -> Any:
    try:
        return load(text)
    except Exception as error:  # PyYAML has errors of its own, and of numbers and dates
        reason = " ".join(str(error).split())
        raise ValueError(f"settings: expected YAML after the = of {word!r}: {reason}") from error


def _set(values: dict, names: Sequence[str], value, word: str) -> None:
    *path, last = names
    owner: Any = values
    for number, name in enumerate(path):
        if isinstance(owner, dict):
            inner = owner.get(name)
            if inner is None:
                inner = owner[name] = {}
            owner = inner
        else:
            owner = owner[_index(owner, name, word)]
        if not isinstance(owner, (dict, list)):
            found = f"found {'.'.join(path[: number + 1])} {owner!r}"
            raise ValueError(f"settings: expected a table or a list in {word!r}, {found}")
    if isinstance(owner, dict):
        owner[last] = value
    else:
        owner[_index(owner, last, word)] = value


def _index(entries: list, name: str, word: str) -> int:
    if not name.isdecimal() or int(name) >= len(entries):
        expected = f"expected a number from 0 to {len(entries) - 1} in {word!r}"
        raise ValueError(f"settings: {expected}, found {name!r}")
    return int(name)
