"""`evogm demo`: merge the shipped adapters."""

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from evox_evogm.command.commands.merge import search
from evox_evogm.command.commands.options import (
    BudgetOption,
    Debug,
    Device,
    Dtype,
    JsonLines,
    Quiet,
    Seed,
)
from evox_evogm.command.messages import fail
from evox_evogm.command.statuses import UNUSABLE_INPUT

DEMO = Path(__file__).resolve().parents[2] / "demo"


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder, as for merge; by default the first free runs/demo-N.",
            show_default=False,
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="More evaluations and examples: 10 to 20 minutes.")
    ] = False,
    short: Annotated[bool, typer.Option("--quick", hidden=True)] = False,
    budget: BudgetOption = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    json_lines: JsonLines = False,
    debug: Debug = False,
) -> None:
    """Merge the shipped adapters of SmolLM2-135M-Instruct, in about three minutes."""
    if short:
        fail("demo: expected --full or nothing, found --quick; the demo is quick without it")
        raise typer.Exit(UNUSABLE_INPUT)
    settings = DEMO / ("full.yaml" if full else "demo.yaml")
    options = {"budget": budget, "seed": seed, "device": device, "dtype": dtype}
    search(settings, [], out or first_free_folder(), options, quiet, json_lines, debug)


def first_free_folder() -> Path:
    """The first of runs/demo-0, runs/demo-1 ... that does not exist."""
    folders = (Path("runs") / f"demo-{number}" for number in count())
    return next(folder for folder in folders if not folder.exists())
