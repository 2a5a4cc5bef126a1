"""How commands print: on a plain console, to where they are told, without lines of transformers."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console


def plain_console() -> Console:
    """A console that shows names as they are."""
    return Console(markup=False, highlight=False, emoji=False)


@contextmanager
def printing(*, quiet: bool, to_stderr: bool) -> Iterator[None]:
    """A context that decides where printed lines go.

    :param quiet: nowhere.
    :param to_stderr: to stderr, as stdout belongs to a program.
    """
    if quiet:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    elif to_stderr:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def silence_transformers() -> None:
    """Keep transformers from writing between the lines of the command."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Between transformers and peft; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning)
