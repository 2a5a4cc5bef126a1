"""`evogm check run.yaml`: see whether a run can begin, and what it will take."""

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from evox_evogm.command.commands.attempt import attempt
from evox_evogm.command.commands.options import (
    BudgetOption,
    Debug,
    Device,
    Dtype,
    Seed,
    Settings,
    Words,
)
from evox_evogm.command.messages import say_notes_once
from evox_evogm.monitoring.escaping import sanitize


def check(
    settings: Settings,
    words: Words = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Show the first prompt of every task.")
    ] = False,
    budget: BudgetOption = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    debug: Debug = False,
) -> None:
    """Load everything, probe the base, try a merge, and predict minutes and memory.

    Nothing is written.
    """

    def action() -> int:
        start = time.monotonic()
        from evox_evogm.command.early_checks import check_early
        from evox_evogm.command.settings_file import read_settings

        options = {"budget": budget, "seed": seed, "device": device, "dtype": dtype}
        found, folder = read_settings(settings, words or [], **options)
        check_early(found, folder)
        from evox_evogm.command.check_run import check  # torch, which takes seconds
        from evox_evogm.command.printing import silence_transformers

        silence_transformers()
        imports = time.monotonic() - start
        say_notes_once()
        print("reading the base model, experts and tasks ...", flush=True)
        unchanged = check(found, folder, prompts=prompts, imports=imports)
        verdict = "all is well"
        if unchanged:
            verdict = f"a run can begin, but see the notes on {', '.join(map(sanitize, unchanged))}"
        print(f"\n{verdict}; next: {merge_command(settings, words or [], options)}")
        return 0

    attempt(action, debug)


def merge_command(settings: Path, words: Sequence[str], options: Mapping[str, object]) -> str:
    """The command that makes the run that was checked.

    :param words: `key=value` words.
    :param options: by their names; None where they were not given.
    """
    parts = ["evogm", "merge", str(settings), *words]
    for name, value in options.items():
        if value is not None:
            parts += [f"--{name}", str(value)]
    return shlex.join(parts)
