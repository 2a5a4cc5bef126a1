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

if TYPE_CHECKING:
    from rich.console import Console

    from evox_evogm.command.merge_run import MergeRun

DEMO = Path(__file__).resolve().parents[1] / "demo"
INTERRUPTED = 130
STATUSES = (
    "Exit status: 0 when the run is finished, 2 for input that cannot be used, "
    f"1 if the search itself fails, {INTERRUPTED} when interrupted."
)

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
        raise typer.Exit(2)
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
        run(settings, out, options)
    except KeyboardInterrupt:
        fail(f"interrupted; the same command with --out {out} goes on from here")
        return INTERRUPTED
    except (ValueError, ModuleNotFoundError, OSError, RuntimeError) as error:
        if debug:
            raise
        fail(str(error))
        return 1 if type(error) is RuntimeError else 2
    return 0


def fail(sentence: str) -> None:
    """Print an error as one line without control characters."""
    from evox_evogm.command.escaping import sanitize

    print(f"evogm: {sanitize(sentence)}", file=sys.stderr)


def run(settings_path: Path, out: Path, options: dict) -> None:
    """Read the settings, search, score, export, and print the table."""
    from rich.console import Console

    from evox_evogm.command.escaping import sanitize
    from evox_evogm.command.merge_run import MergeRun
    from evox_evogm.command.settings import read_settings

    silence_transformers()
    settings, folder = read_settings(settings_path, **options)
    regressing = ", and regressing the experts on their tasks" if settings.regmean else ""
    base = sanitize(settings.base)
    print(f"reading the base model {base}, experts and tasks{regressing} ...", flush=True)
    with MergeRun(settings, folder, out) as merge_run:
        if merge_run.finished:
            print(f"this run is finished: {out / 'report.md'}")
        else:
            finish(merge_run, Console(markup=False, highlight=False, emoji=False))


def silence_transformers() -> None:
    """Keep transformers from writing between the lines of the command."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Between transformers and peft; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning)


def finish(merge_run: "MergeRun", console: "Console") -> None:
    """Make what is left of a run, and print its result."""
    from evox_evogm.command.progress import show_progress

    print_plan(merge_run)
    with show_progress(console) as on_progress:
        best = merge_run.search(on_progress)
    print("\nscoring the base, the experts and the merge on test examples ...", flush=True)
    rows = merge_run.score_rows(best)
    print_result(merge_run.finish(best, rows), merge_run.out, console)


def print_plan(merge_run: "MergeRun") -> None:
    """Say what a run is going to do, before its first evaluation."""
    problem = merge_run.problem
    examples = sum(len(task.examples) for task in problem.tasks)
    tasks = f"{len(problem.tasks)} tasks with {examples} dev examples"
    where = f"on {problem.language_model.device} in {merge_run.dtype}"
    print(f"{problem.n_experts} experts, {tasks}, {merge_run.budget} evaluations {where}")
    print(f"run folder: {merge_run.out}", flush=True)
    if merge_run.saved is not None:
        print("an earlier process began this run; it goes on", flush=True)


def print_result(result: dict, out: Path, console: "Console") -> None:
    """Print the table of scores, the coefficients, and where the files are.

    :param result: what `result.json` holds.
    """
    from evox_evogm.command.escaping import sanitize
    from evox_evogm.command.score_table import print_scores

    print("\nscores, dev / test")
    print_scores(result["scores"], console)
    coefficients = []
    for name, value in result["coefficients"].items():
        coefficients.append(f"{sanitize(name)} {value:+.3f}")
    whose = " of the regressed experts" if result["regmean"] else ""
    print(f"\ncoefficients{whose}: {', '.join(coefficients)}")
    if result["adapter"]:
        difference = result["adapter"]["largest_relative_difference"]
        check = f"loaded again with plain peft: equal to the merge within {difference:.1e}"
        print(f"adapter: {out / result['adapter']['folder']} ({check})")
    print(f"report: {out / 'report.md'}")


if __name__ == "__main__":
    sys.exit(main())
