"""The `evogm` command: `evogm merge run.yaml --out DIR`, and `evogm demo`, which is the same on shipped settings."""

import argparse
import sys
import time
import warnings
from pathlib import Path

DEMO = Path(__file__).resolve().parents[1] / "demo"


def build_parser() -> argparse.ArgumentParser:
    """The command line: sub-commands and their options."""
    parser = argparse.ArgumentParser(
        prog="evogm", description="Merge LoRA experts by evolutionary generative optimisation."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser(
        "merge", help="search the best merge of the experts that a settings file names"
    )
    merge.add_argument("settings", type=Path, help="YAML file")
    merge.add_argument(
        "--out",
        type=Path,
        required=True,
        help="run folder; an unfinished run with these settings goes on",
    )
    demo = commands.add_parser("demo", help="merge the shipped experts of SmolLM2-135M-Instruct")
    demo.add_argument(
        "--out", type=Path, help="run folder, as for merge; by default the first free runs/demo-N"
    )
    demo.add_argument("--quick", action="store_true", help="a search of about two minutes")
    for command in (merge, demo):
        command.add_argument("--budget", type=int, help="evaluations of merged models")
        command.add_argument("--seed", type=int, help="of the search")
        command.add_argument("--device", help="auto, cpu, cuda, cuda:1 ...")
        command.add_argument("--dtype", help="auto, float32, bfloat16 or float16")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    :return: the exit status: 0, 2 for input that cannot be used, 1 if the search itself fails, 130 when interrupted.
    """
    arguments = build_parser().parse_args(argv)
    try:
        return run(arguments)
    except KeyboardInterrupt:
        print(
            f"\nevogm: interrupted; the same command with --out {arguments.out} goes on from here",
            file=sys.stderr,
        )
        return 130
    except (ValueError, ModuleNotFoundError, OSError, RuntimeError) as error:
        if arguments.debug:
            raise
        from evox_evogm.command.report import sanitize

        print(f"evogm: {sanitize(str(error))}", file=sys.stderr)
        return 1 if type(error) is RuntimeError else 2


def run(arguments: argparse.Namespace) -> int:
    """Read the settings, search, score, export, and print the table."""
    from transformers.utils import logging

    from evox_evogm.command.merge_run import MergeRun
    from evox_evogm.command.report import sanitize
    from evox_evogm.command.settings import read_settings

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings(
        "ignore", category=FutureWarning
    )  # between transformers and peft, nothing a user can do about

    if arguments.command == "demo":
        arguments.settings = DEMO / ("quick.yaml" if arguments.quick else "demo.yaml")
        arguments.out = arguments.out or next(
            p for i in range(10**6) if not (p := Path("runs") / f"demo-{i}").exists()
        )
    options = {name: getattr(arguments, name) for name in ("budget", "seed", "device", "dtype")}
    settings, folder = read_settings(arguments.settings, **options)
    regressing = ", and regressing the experts on their tasks" if settings.regmean else ""
    print(
        f"reading the base model {sanitize(settings.base)}, experts and tasks{regressing} ...",
        flush=True,
    )
    with MergeRun(settings, folder, arguments.out, on_progress=ProgressLine()) as merge_run:
        finish(merge_run, arguments.out)
    return 0


def finish(merge_run, out: Path) -> None:
    """Make what is left of a run, and print its table."""
    from evox_evogm.command.report import sanitize, score_table

    if merge_run.finished:
        print(f"this run is finished: {out / 'report.md'}")
        return
    problem = merge_run.problem
    print(
        f"{problem.n_experts} experts, {len(problem.tasks)} tasks with {sum(len(t.examples) for t in problem.tasks)} dev "
        f"examples, {merge_run.budget} evaluations on {problem.language_model.device} in {merge_run.dtype}\n"
        f"run folder: {out}",
        flush=True,
    )
    if merge_run.saved is not None:
        print("an earlier process began this run; it goes on", flush=True)
    best = merge_run.search()
    print("\nscoring on test examples: ", end="", flush=True)
    rows = merge_run.score_rows(
        best, on_row=lambda name: print(sanitize(name), end=" ", flush=True)
    )
    result = merge_run.finish(best, rows)
    print("\n\nscores, dev / test\n" + score_table(result["scores"]))
    print(f"\ncoefficients{' of the regressed experts' if result['regmean'] else ''}: ", end="")
    print(
        ", ".join(
            f"{sanitize(name)} {value:+.3f}" for name, value in result["coefficients"].items()
        )
    )
    if result["adapter"]:
        difference = result["adapter"]["largest_relative_difference"]
        print(
            f"adapter: {out / 'adapter'} (loaded again with plain peft: equal to the merge within {difference:.1e})"
        )
    print(f"report: {out / 'report.md'}")


class ProgressLine:
    """Shows every evaluation on one line of a terminal, or about every ten seconds in a log."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.shown = 0.0

    def __call__(self, progress) -> None:
        now, last = time.monotonic(), progress.done == progress.budget
        if not (self.live or last or now - self.shown > 10):
            return
        self.shown = now
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        text = (
            f"[{progress.done:4.0f}/{progress.budget}] round {progress.round + 1}, iteration {progress.iteration}: "
            f"score {progress.score:.4f}, best {progress.best:.4f}, {minutes} min {seconds:02d} s left"
        )
        print(
            f"\r{text}  " if self.live else text,
            end="" if self.live and not last else "\n",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
