"""How a command ends: with an exit status, and one sentence where it did not succeed."""

from collections.abc import Callable
from typing import NoReturn

import typer

from evox_evogm.command.messages import fail
from evox_evogm.command.statuses import ERRORS, INTERRUPTED, sentence_of, status_of


def attempt(action: Callable[[], int], debug: bool, interrupted: str = "interrupted") -> NoReturn:
    """Do what a command is for, and end it.

    :param action: gives the exit status.
    :param debug: let errors through, with their traceback.
    :param interrupted: what to say when the user interrupts.
    """
    try:
        status = action()
    except KeyboardInterrupt:
        fail(interrupted)
        status = INTERRUPTED
    except ERRORS as error:
        if debug or isinstance(error, BrokenPipeError):  # a reader such as `head` that has enough
            raise
        fail(sentence_of(error))
        status = status_of(error)
    raise typer.Exit(status)
