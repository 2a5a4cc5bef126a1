"""Pages and styles from the jinja2 templates beside this file; every text in them is escaped."""

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evox_evogm.monitoring.counted import counted
from evox_evogm.monitoring.escaping import printable_lines, sanitize


@cache
def environment() -> Environment:
    """The templates. Texts are sanitized and escaped as HTML unless they are `Markup`."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["counted"] = counted
    found.filters["lines"] = lines
    found.filters["breakable"] = breakable
    return found


def _shown(value):
    """A text on one line without characters that steer; anything else as it is."""
    return sanitize(value) if type(value) is str else value


class Lines(str):
    """A text of several lines that is shown as it is."""


def lines(text: str) -> Lines:
    """A text line by line, with blanks in place of characters that steer a terminal."""
    return Lines("\n".join(printable_lines(text)))


def breakable(name: str) -> Markup:
    """A name that may be broken after its underscores, hyphens, points and slashes."""
    parts = re.split(r"(?<=[_./-])", sanitize(name))
    return Markup("<wbr>").join(parts)
