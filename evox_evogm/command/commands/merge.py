"""`evogm merge run.yaml`: search the best merge."""

import os
from pathlib import Path
from typing import Annotated

import typer

from evox_evogm.command.commands.attempt import attempt
from evox_evogm.command.commands.options import (
    BudgetOption,
    Debug,
    Device,
    Dtype,
    JsonLines,
    Quiet,
    Seed,
    Settings,
    Words,
)


def merge(
    settings: Settings,
    words: Words = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: a new one, or one to go on with. By default runs/NAME, after the "
            "settings file.",
            show_default=False,
        ),
    ] = None,
    budget: BudgetOption = None,
    seed: Seed = None,
    confirm: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Score the best K merges on further dev examples before choosing one.",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    json_lines: JsonLines = False,
    debug: Debug = False,
) -> None:
    """Search the best merge of the adapters in a settings file.

    The same command goes on with an interrupted run, and with a larger --budget with a finished
    one: no evaluation is made again.
    """
    options = {"budget": budget, "seed": seed, "device": device, "dtype": dtype}
    options["confirm"] = confirm
    out = Path("runs") / settings.stem if out is None else out
    search(settings, words or [], out, options, quiet, json_lines, debug)


def search(
    settings: Path,
    words: list[str],
    out: Path,
    options: dict,
    quiet: bool,
    json_lines: bool,
    debug: bool,
) -> None:
    """Make a run, and end the command."""

    def action() -> int:
        from evox_evogm.command.early_checks import check_early
        from evox_evogm.command.kept_overrides import all_words, kept_overrides, with_kept
        from evox_evogm.command.settings_file import read_settings

        ranks = None
        if "RANK" in os.environ:  # under torchrun
            from evox_evogm.command.torchrun import ranks_of_torchrun

            # From here on the others notice if this rank ends, as by the checks that follow.
            ranks = ranks_of_torchrun()
        given, _ = with_kept(all_words(words, options), kept_overrides(out))
        check_early(*read_settings(settings, given))
        from evox_evogm.command.merge_from_settings import run  # torch, which takes seconds

        return run(settings, words, out, options, quiet=quiet, json_lines=json_lines, ranks=ranks)

    attempt(action, debug, f"interrupted; the same command with --out {out} goes on from here")
