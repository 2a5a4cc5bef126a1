"""Markdown pages from the jinja2 templates beside this file, in which no name is markup."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evox_evogm.command.experts import whose_coefficients
from evox_evogm.monitoring.counted import counted
from evox_evogm.monitoring.escaping import escape_markdown, printable_lines
from evox_evogm.problems.adapters.groups import without_channel

SHADES = " ░▒▓█"
BAR_LENGTH = 20  # characters of the largest coefficient


def render(template: str, **values) -> str:
    """A page from a template. Texts are escaped unless the template says `safe`.

    :param template: the name of a file beside this one.
    :param values: what the template names.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=_escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["counted"] = counted
    environment.filters["whose_coefficients"] = whose_coefficients_in_markdown
    environment.filters["row"] = table_row
    environment.filters["bar"] = bar
    environment.filters["heat_map"] = heat_map
    environment.filters["has_channels"] = has_channels
    environment.filters["code_block"] = code_block
    return environment.get_template(template).render(values)


def whose_coefficients_in_markdown(regmean: bool | str | dict, *, keep_experts: bool) -> Markup:
    """The sentence on coefficients of a search around RegMean, in which no word is a user's."""
    words = whose_coefficients(regmean, keep_experts=keep_experts)
    return Markup(words[0].upper() + words[1:])


def _escape(value):
    """What a page shows of a value: a text as Markdown that reads the same."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return escape_markdown(value)
    return value


def table_row(cells: Iterable) -> Markup:
    """A line of a Markdown table."""
    escaped = [str(_escape(cell)) for cell in cells]
    return Markup(f"| {' | '.join(escaped)} |")


def code_block(text: str) -> Markup:
    """A text line by line as it is. Indented, so that nothing in it can end the block."""
    lines = [f"    {line}" for line in printable_lines(text)]
    return Markup("\n".join(lines) or "    ")


def heat_map(by_expert: Mapping[str, Mapping[str, float | None]]) -> list[list[str]]:
    """A row of cells for each group of modules: its name, and a shaded coefficient per expert.

    Channels of a module have one row, with their mean.

    :param by_expert: by expert and group; None where the expert has nothing in a group.
    """
    columns = [mean_over_channels(column) for column in by_expert.values()]
    sizes: list[float] = []
    for column in columns:
        sizes += [abs(value) for value in column.values() if value is not None]
    largest = max(sizes)
    rows = []
    for group in columns[0]:
        row = [group]
        for column in columns:
            value = column[group]
            if value is None:
                row.append("")
                continue
            size = abs(value) / largest if largest else 0.0
            shade = SHADES[round(size * (len(SHADES) - 1))]
            row.append(f"{shade} {value:+.2f}")
        rows.append(row)
    return rows


def has_channels(by_expert: Mapping[str, Mapping[str, float | None]]) -> bool:
    """Whether some of the groups are channels."""
    groups = set().union(*by_expert.values())
    return any(without_channel(group) != group for group in groups)


def mean_over_channels(by_group: Mapping[str, float | None]) -> dict[str, float | None]:
    """The mean coefficient of the channels that an expert has of each module.

    Other groups are as they are, and so is None where it has none.
    """
    found: dict[str, list[float]] = {}
    for group, value in by_group.items():
        values = found.setdefault(without_channel(group), [])
        if value is not None:
            values.append(value)
    means: dict[str, float | None] = {}
    for name, values in found.items():
        means[name] = sum(values) / len(values) if values else None
    return means


def bar(value: float, coefficients: Iterable[float]) -> Markup:
    """A coefficient as a bar of plus or minus signs, for a code span.

    :param coefficients: all of them; the largest gets the longest bar.
    """
    largest = max(abs(coefficient) for coefficient in coefficients)
    if not largest:
        return Markup()
    return Markup("+" if value > 0 else "-") * round(BAR_LENGTH * abs(value) / largest)
