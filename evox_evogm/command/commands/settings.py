"""`evogm settings`: every setting with its type, default and meaning."""

import shutil
from typing import Annotated

import typer

from evox_evogm.command.commands.attempt import attempt
from evox_evogm.command.commands.options import Debug

WIDEST = 100


def settings(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Settings to describe; tasks for those of a task; by default those of a run.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema, for editors.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Describe every key of a settings file: type, default, meaning."""

    def action() -> int:
        from evox_evogm.command.describe_settings import schema_text, settings_text

        width = min(WIDEST, shutil.get_terminal_size().columns)
        print(schema_text() if schema else settings_text(names or [], width))
        return 0

    attempt(action, debug)
