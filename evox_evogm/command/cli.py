"""The command `evogm`: `evogm merge run.yaml --out DIR`, and `evogm demo` on shipped settings.

What takes seconds to import (transformers, and what needs it) is imported inside functions.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evox_evogm.command.messages import (
    fail,
    print_adapter,
    print_no_information,
    print_plan,
    print_result,
)
from evox_evogm.command.statuses import (
    ERRORS,
    INTERRUPTED,
    NO_ADAPTER,
    NO_INFORMATION,
    STATUSES,
    UNUSABLE_INPUT,
    sentence_of,
    status_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from evox_evogm.command.merge_run import MergeRun

DEMO = Path(__file__).resolve().parents[1] / "demo"

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=STATUSES,
)

Budget = Annotated[int | None, typer.Option(help="Evaluations of merged models.")]
Seed = Annotated[int | None, typer.Option(help="Of the search.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


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
    """Merge LoRA adapters of one base model: find their weights, write the sum as one adapter."""


@app.command(epilog=STATUSES)
def merge(
    settings: Annotated[Path, typer.Argument(help="YAML file.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            help="Run folder. An unfinished run with these settings goes on.", show_default=False
        ),
    ],
    budget: Budget = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    debug: Debug = False,
) -> None:
    """Search the best merge of the adapters in a settings file. Options replace its settings."""
    options = {"budget": budget, "seed": seed, "device": device, "dtype": dtype}
    raise typer.Exit(attempt(settings, out, options, debug))


@app.command(epilog=STATUSES)
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
    quick: Annotated[bool, typer.Option("--quick", hidden=True)] = False,
    budget: Budget = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    debug: Debug = False,
) -> None:
    """Merge the shipped adapters of SmolLM2-135M-Instruct, in about two minutes."""
    if quick:
        fail("demo: expected --full or nothing, found --quick; the demo is quick without it")
        raise typer.Exit(UNUSABLE_INPUT)
    settings = DEMO / ("full.yaml" if full else "demo.yaml")
    options = {"budget": budget, "seed": seed, "device": device, "dtype": dtype}
    raise typer.Exit(attempt(settings, out or first_free_folder(), options, debug))


def first_free_folder() -> Path:
    """The first of runs/demo-0, runs/demo-1 ... that does not exist."""
    folders = (Path("runs") / f"demo-{number}" for number in count())
    return next(folder for folder in folders if not folder.exists())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    :param argv: the words after `evogm`; by default those of the process.
    :return: the exit status, see `STATUSES`.
    """
    try:
        app(argv, prog_name="evogm")
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    raise AssertionError("typer ends a command by SystemExit")


def attempt(settings: Path, out: Path, options: dict, debug: bool) -> int:
    """Make a run, and say in one sentence why it ended if it did not succeed.

    :param settings: the settings file.
    :param out: the run folder.
    :param options: settings that replace the file's, where they are not None.
    :param debug: let errors through, with their traceback.
    :return: the exit status.
    """
    try:
        return run(settings, out, options)
    except KeyboardInterrupt:
        fail(f"interrupted; the same command with --out {out} goes on from here")
        return INTERRUPTED
    except ERRORS as error:
        if debug:
            raise
        fail(sentence_of(error))
        return status_of(error)


def run(settings_path: Path, out: Path, options: dict) -> int:
    """Read the settings, search, score, export, and print the table.

    :return: the exit status of a run that is finished.
    """
    from rich.console import Console

    from evox_evogm.command.escaping import sanitize
    from evox_evogm.command.experts import regressed_on
    from evox_evogm.command.merge_run import MergeRun
    from evox_evogm.command.settings import read_settings

    silence_transformers()
    settings, folder = read_settings(settings_path, **options)
    regressing = ""
    if settings.regmean:
        regressing = f", and regressing the experts on {regressed_on(settings.regmean)}"
    base = sanitize(settings.base)
    print(f"reading the base model {base}, experts and tasks{regressing} ...", flush=True)
    with MergeRun(settings, folder, out) as merge_run:
        if merge_run.finished:
            result = reopen(merge_run)
        else:
            result = finish(merge_run, Console(markup=False, highlight=False, emoji=False))
    return status_of_result(result)


def silence_transformers() -> None:
    """Keep transformers from writing between the lines of the command."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Between transformers and peft; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning)


def finish(merge_run: "MergeRun", console: "Console") -> dict:
    """Make what is left of a run, and print its result.

    :return: what `result.json` holds.
    """
    from evox_evogm.command.progress import show_progress

    print_plan(merge_run)
    with show_progress(console) as on_progress:
        best = merge_run.search(on_progress)
    print("\nscoring the base, the experts and the merge on test examples ...", flush=True)
    rows = merge_run.score_rows(best)
    noted = len(merge_run.notes)
    result = merge_run.finish(best, rows)
    print_result(result, result["notes"][noted:], merge_run.out, console)
    return result


def reopen(merge_run: "MergeRun") -> dict:
    """Say that a run is finished, and make its adapter again if something is wrong with it.

    :return: what `result.json` holds.
    """
    result = merge_run.result()
    print(f"this run is finished: {merge_run.out / 'report.md'}")
    fault = merge_run.adapter_fault()
    if fault is not None:
        fail(f"adapter: {fault}; making it again from the coefficients")
        result = merge_run.export_again()
        print_adapter(result["adapter"], merge_run.out)
    if result["no_information"]:
        print_no_information(result["no_information"])
    return result


def status_of_result(result: dict) -> int:
    """The exit status of a finished run. Says what is wrong with its result, if anything.

    :param result: what `result.json` holds.
    """
    adapter = result["adapter"]
    if adapter and adapter["error"]:
        advice = "scores and report are written, and the same command makes the adapter again"
        fail(f"adapter: {adapter['error']}; {advice}")
        return NO_ADAPTER
    if result["no_information"]:
        fail(result["no_information"]["sentence"])
        return NO_INFORMATION
    return 0


if __name__ == "__main__":
    sys.exit(main())
