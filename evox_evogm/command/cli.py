"""The command `evogm`: its sub-commands are in `commands/`, a file each.

What takes seconds to import (torch, transformers) is imported when a sub-command needs it.
"""

import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from evox_evogm.command.commands.check import check
from evox_evogm.command.commands.compare import compare
from evox_evogm.command.commands.demo import DEMO, demo
from evox_evogm.command.commands.export import export
from evox_evogm.command.commands.init import init
from evox_evogm.command.commands.merge import merge
from evox_evogm.command.commands.report import report
from evox_evogm.command.commands.score import score
from evox_evogm.command.commands.settings import settings
from evox_evogm.command.relative_paths import with_home
from evox_evogm.command.statuses import DONE_OR_REFUSED, INTERRUPTED, STATUSES

OPTION = re.compile(r"--[\w-]+=|-\w")  # before a value in the same word

__all__ = ["DEMO", "INTERRUPTED", "app", "main"]

app = typer.Typer(
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=STATUSES,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"evogm {version('evox-evogm')}")
        raise typer.Exit


@app.callback()
def evogm(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Merge LoRA adapters of one base model into one adapter. A search finds their weights.

    First evogm init ADAPTER..., then evogm check run.yaml, then evogm merge run.yaml.
    """


app.command(epilog=DONE_OR_REFUSED)(init)
app.command(epilog=DONE_OR_REFUSED)(check)
app.command(epilog=STATUSES)(merge)
app.command(epilog=STATUSES)(demo)
for command in (score, compare, export, report, settings):
    app.command(epilog=DONE_OR_REFUSED)(command)


def _with_home(word: str) -> str:
    """A path as `'~/merge'`, `--out=~/merge` or `-o~/merge`: a shell leaves such a `~` as it is."""
    option = OPTION.match(word)
    value = 0 if option is None else option.end()
    return word[:value] + with_home(word[value:])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    :param argv: the words after `evogm`; by default those of the process.
    :return: the exit status, see `STATUSES`.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        app([_with_home(word) for word in words], prog_name="evogm")
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    raise AssertionError("typer ends a command by SystemExit")


if __name__ == "__main__":
    sys.exit(main())
