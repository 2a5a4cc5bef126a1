"""The YAML file with the settings of a run: read, with the words of the command line in place."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from evox_evogm.command.overrides import apply_overrides
from evox_evogm.command.relative_paths import HOME, with_home
from evox_evogm.command.settings import RunSettings, parse_settings
from evox_evogm.near_path import near_path


def read_settings(path, words: Sequence[str] = (), **overrides) -> tuple[RunSettings, Path]:
    """Read a settings file.

    :param path: a YAML file.
    :param words: `key=value` words that replace what the file says, see `apply_overrides`.
    :param overrides: settings that replace the file's, where they are not None.
    :return: the settings, and the folder that their paths are relative to.
    :raises ValueError: if the file is missing or not YAML, or a setting cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"settings: expected a YAML file, found the folder {path}")
    if not path.is_file():
        raise ValueError(f"settings: expected a YAML file, found none at {path}{near_path(path)}")
    values = read_table(path)
    apply_overrides(values, words, lambda text: yaml.load(text, SettingsLoader))
    for name, value in overrides.items():
        if value is not None:
            values[name] = value
    folder = path.resolve().parent
    return parse_settings(with_base(values, folder), str(path)), folder


def with_base(values: dict, folder: Path) -> dict:
    """A table of settings, in which a base that is missing is the one beside the experts.

    :param folder: the folder that paths are relative to.
    """
    experts = values.get("experts")
    if "base" in values or not isinstance(experts, str):
        return values
    from evox_evogm.problems.inference.find_base import base_beside

    base = base_beside(with_home(experts), folder)
    if base is not None and with_home(experts) != experts:
        base = base.replace(with_home(HOME), HOME, 1)  # as the experts are named
    return values if base is None else {"base": base, **values}


def read_table(path: Path) -> dict:
    """The table that a YAML file holds.

    :raises ValueError: if the file is not YAML, or no table.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), SettingsLoader)
    except OSError:
        raise
    # PyYAML has errors of its own, and does not catch those of numbers, dates and deep nesting.
    except Exception as error:
        raise ValueError(f"{path}: expected YAML, found {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        kinds = {type(None): "an empty file", str: "a text", list: "a list"}
        found = kinds.get(type(values), repr(values))
        raise ValueError(f"{path}: expected a table of settings, found {found}")
    return values


class SettingsLoader(yaml.SafeLoader):
    """YAML without code, in which no table has a key twice: YAML itself would take the last one."""

    def construct_mapping(self, node, deep=False):
        """A table of different keys.

        :raises ValueError: naming a key that is there twice.
        """
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in keys:
                found = f"found {key.value!r} twice{node.start_mark}"
                raise ValueError(f"expected different names in a table, {found}")
            keys.add(key.value)
        return super().construct_mapping(node, deep)
