"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from evox_evogm.monitoring.budget import parse_budget


def _read_budget(text: str) -> int | str:
    try:
        evaluations = parse_budget(text).evaluations
    except ValueError as error:
        raise typer.BadParameter(str(error).removeprefix("budget: ")) from error
    return text if evaluations is None else evaluations


Settings = Annotated[
    Path, typer.Argument(metavar="RUN.YAML", help="Settings file.", show_default=False)
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings in place of the file's, such as search.box_growth=0 or tasks.0.dev=8.",
        show_default=False,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        parser=_read_budget, metavar="NUMBER|TIME", help="Evaluations, or a time such as 20min."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of the search: a whole number.")]
Device = Annotated[
    str | None, typer.Option(help="Where the model computes: auto, cpu, cuda, cuda:1 ...")
]
Dtype = Annotated[
    str | None, typer.Option(help="Of the base model: auto, float32, bfloat16 or float16.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
JsonLines = Annotated[
    bool,
    typer.Option("--json", help="A JSON line per evaluation on stdout, the rest on stderr."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
