"""Settings that were given on the command line: a run folder keeps them for later processes.

Whoever goes on with a run need not give them again. They stand in `inputs.json` as `key=value`
words.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from evox_evogm.command.run_files import INPUTS, has_begun

OVERRIDES = "overrides"  # in `inputs.json`


def kept_overrides(out: Path) -> list[str]:
    """The words that a run was begun or gone on with; none where there is no run.

    A damaged file gives none: what reads the run says what is wrong with it.
    """
    if not has_begun(out):
        return []
    try:
        words = json.loads((out / INPUTS).read_text(encoding="utf-8")).get(OVERRIDES)
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    return [str(word) for word in words] if isinstance(words, list) else []


def keep_overrides(out: Path, words: Sequence[str], but: Sequence[str] = ()) -> None:
    """Have a run folder keep these words in place of those that it has.

    :param words: of all settings that were given, now or before.
    :param but: settings whose words stay as the folder has them.
    """
    before = kept_overrides(out)
    kept = [word for word in words if _key(word) not in but]
    kept += [word for word in before if _key(word) in but]
    if sorted(kept) == sorted(before):
        return
    from evox_evogm.resume.atomic_write import atomic_write  # EvoX, which takes seconds

    inputs = json.loads((out / INPUTS).read_text(encoding="utf-8"))
    inputs[OVERRIDES] = kept
    atomic_write(out / INPUTS, (json.dumps(inputs, indent=2) + "\n").encode())


def all_words(words: Sequence[str], options: Mapping[str, object]) -> list[str]:
    """What a command line sets, as words.

    :param words: `key=value`.
    :param options: settings by name; None where they were not given. They come last.
    """
    found = list(words)
    for name, value in options.items():
        if value is not None:
            text = str(value)
            if yaml.safe_load(text) != value:  # a text that YAML takes for something else
                text = json.dumps(value)
            found.append(f"{name}={text}")
    return found


def with_kept(words: Sequence[str], kept: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of now behind those that a run keeps.

    :param words: of this command line.
    :param kept: of the run folder.
    :return: all words, and those of them that the command line did not give.
    """
    given = {_key(word) for word in words}
    added = [word for word in kept if _key(word) not in given]
    return [*added, *words], added


def _key(word: str) -> str:
    return word.partition("=")[0].strip()
