"""`evogm score run.yaml MODEL...`: score adapters, runs, experts or coefficients."""

from pathlib import Path
from typing import Annotated

import typer

from evox_evogm.command.commands.attempt import attempt
from evox_evogm.command.commands.options import Debug, Device, Dtype, Quiet, Settings


def score(
    settings: Settings,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="An adapter folder, the folder of a finished run, base, average, the name of an "
            "expert, or coefficients such as 0.5,0.5 or first=0.5. By default base, all experts "
            "and their average.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A JSON file for the scores, for evogm compare.", show_default=False),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting in place of the file's."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score models on the dev and test examples of a settings file.

    Nothing is searched. Options come before models whose names begin with a minus: -- -0.5,1.
    """

    def action() -> int:
        from evox_evogm.command.early_checks import check_early
        from evox_evogm.command.settings_file import read_settings

        found, folder = read_settings(settings, change or [], device=device, dtype=dtype)
        check_early(found, folder)
        # What imports torch takes seconds: it comes after the early checks.
        from evox_evogm.command.printing import plain_console, printing, silence_transformers
        from evox_evogm.command.score_models import print_rows, score_words, write_scores

        with printing(quiet=quiet, to_stderr=False):
            silence_transformers()
            print("reading the base model, adapters and tasks, and scoring ...", flush=True)
            rows, tasks = score_words(found, folder, models or [])
            print_rows(rows, plain_console())
            if out is not None:
                write_scores(rows, tasks, out)
                print(f"scores by example: {out}")
        return 0

    attempt(action, debug)
