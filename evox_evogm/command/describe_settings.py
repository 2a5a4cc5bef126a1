"""Every setting in words: its type, its default and its meaning, as the models describe it."""

import json
import textwrap
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic_core import PydanticUndefined

from evox_evogm.command.settings import RunSettings
from evox_evogm.command.strict_settings import StrictSettings, check_names
from evox_evogm.command.task_settings import TaskSettings

TASKS = "tasks"
INDENT = "    "


class Described(NamedTuple):
    """One setting."""

    name: str
    expected: str
    """What its values are."""
    default: str
    """As YAML, or `required`."""
    meaning: str


def describe(settings: type[StrictSettings]) -> Iterator[Described]:
    """Every setting of a model, in its order."""
    for name, field in settings.model_fields.items():
        default = "required"
        if field.default is not PydanticUndefined and not field.is_required():
            default = as_yaml(field.get_default(call_default_factory=True))
        yield Described(name, values_of(settings, name), default, field.description or "")


def values_of(settings: type[StrictSettings], name: str) -> str:
    """What the values of a setting are: all of them where they are a list of texts."""
    annotation = settings.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    return settings.expected(name)


def as_yaml(value) -> str:
    """A value on one line, as a settings file has it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def settings_text(names: list[str], width: int) -> str:
    """What `evogm settings` prints.

    :param names: settings to describe; `tasks` for those of a task, nothing for those of a run.
    :param width: columns.
    :raises ValueError: if a name is unknown.
    """
    of_run = list(describe(RunSettings))
    of_task = list(describe(TaskSettings))
    if not names:
        heading = "Settings of a run; those of a task: evogm settings tasks"
        return _text(of_run, heading, width)
    if names == [TASKS]:
        return _text(of_task, "Settings of each entry under tasks", width)
    wanted = [name.removeprefix(f"{TASKS}.") for name in names]
    known = [setting.name for setting in [*of_run, *of_task]]
    check_names(wanted, known, "settings")
    chosen = []
    for name, word in zip(wanted, names, strict=True):
        settings = of_task if word.startswith(f"{TASKS}.") else [*of_run, *of_task]
        chosen += [setting for setting in settings if setting.name == name]
    return _text(chosen, "", width)


def _text(settings: list[Described], heading: str, width: int) -> str:
    blocks = [heading] if heading else []
    for name, expected, default, meaning in settings:
        is_required = default == "required"
        kind = f"{expected}; {'required' if is_required else f'default {default}'}"
        lines = textwrap.wrap(
            f"{name}: {kind}", width, subsequent_indent=INDENT, break_on_hyphens=False
        )
        lines += textwrap.wrap(
            meaning,
            width,
            initial_indent=INDENT,
            subsequent_indent=INDENT,
            break_on_hyphens=False,
        )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def schema_text() -> str:
    """The JSON schema of a settings file, for editors that complete and check YAML by one."""
    schema = RunSettings.model_json_schema()
    schema["properties"][TASKS]["items"] = {"$ref": "#/$defs/TaskSettings"}
    return json.dumps(schema, indent=2)
