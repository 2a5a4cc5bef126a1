"""What all settings have in common: described fields, strict types, and errors of one sentence."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class StrictSettings(BaseModel):
    """Settings that take no number for true or false, no text for a number, and no unknown name."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @classmethod
    def expected(cls, name: str) -> str:
        """What the values of a setting are, in the words of an error message."""
        extra = cls.model_fields[name].json_schema_extra
        assert isinstance(extra, dict)
        return str(extra["expected"])


def setting(default, expected: str, description: str, **limits) -> Any:
    """A field of settings.

    :param default: its value where the settings say nothing; `...` if they have to say it.
    :param expected: what its values are, in the words of an error message.
    :param description: what it does, for a reader of the settings.
    :param limits: of its values, as pydantic has them.
    """
    extra: dict[str, Any] = {"expected": expected}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def check_names(found: Iterable, known: Sequence[str], where: str) -> None:
    """Refuse a name that is not known, and say which known name is nearest.

    :param found: the names in the settings, of any type that YAML has.
    :param known: the names that mean something.
    :param where: begins the error message.
    :raises ValueError: naming the first unknown name.
    """
    for name in found:
        if name not in known:
            hint = near_name(name, known) or f"; known are {', '.join(known)}"
            raise ValueError(f"{where}: found the unknown setting {name!r}{hint}")


def near_name(found, known: Sequence[str]) -> str:
    """`"; did you mean 'budget'?"`, or nothing where no known name is like what was found."""
    near = difflib.get_close_matches(str(found), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def refuse_former_name(found: Mapping, former: str, name: str, advice: str, where: str) -> None:
    """Refuse the former name of a setting, and say what to write instead.

    :param found: the table of settings.
    :param former: the name that settings of earlier versions have.
    :param name: the name of the setting.
    :param advice: what to write.
    :param where: begins the error message.
    :raises ValueError: if the former name stands in the table.
    """
    if former in found:
        expected = f"expected the setting {name!r}, found its former name {former!r}"
        raise ValueError(f"{where}: {expected}; write {advice}")


def sentence(settings: type[StrictSettings], error: ValidationError) -> str:
    """What the first of pydantic's errors says, as `name: expected ..., found ...`."""
    first = error.errors()[0]
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    name = str(first["loc"][0])
    if kind == "missing":
        return f"expected the setting {name!r}, found none"
    if kind == "greater_than_equal":
        return f"{name}: expected at least {context['ge']}, found {value}"
    is_union = len(first["loc"]) > 1
    if kind == "literal_error" and isinstance(value, str) and not is_union:
        allowed = get_args(settings.model_fields[name].annotation)
        hint = near_name(value, allowed)
        return f"{name}: expected one of {', '.join(allowed)}, found {value!r}{hint}"
    return f"{name}: expected {settings.expected(name)}, found {value!r}"
