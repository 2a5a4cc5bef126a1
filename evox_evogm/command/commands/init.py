"""`evogm init ADAPTERS...`: write a settings file for some adapters."""

from pathlib import Path
from typing import Annotated

import typer

from evox_evogm.command.commands.attempt import attempt
from evox_evogm.command.commands.options import Debug
from evox_evogm.command.relative_paths import with_home
from evox_evogm.monitoring.escaping import sanitize


def init(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER...",
            help="Adapter folders, folders of them, or hub ids (owner/name@revision/folder).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The settings file.")] = Path("run.yaml"),
    base: Annotated[
        str | None,
        typer.Option(help="A folder or hub id; by default what the adapters name."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            help="DEV.jsonl,TEST.jsonl, a JSON file with dev and test, reasoning_gym:NAME, "
            "lm_eval:NAME, or for an image model a folder with dev and test in it, or "
            "DEV,TEST,HEAD; several times for several tasks.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a settings file that is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Look at adapters, and write a commented settings file for merging them."""

    def action() -> int:
        from evox_evogm.command.early_checks import check_adapter, check_base
        from evox_evogm.command.init_tasks import check_task_word

        if out.exists() and not replace:
            advice = "give another name, or --replace"
            raise ValueError(f"out: expected a new file, found {out}; {advice}")
        tasks = [",".join(map(with_home, word.split(","))) for word in task or []]
        for word in adapters:
            check_adapter(word, Path(word).name)
        if base is not None:
            check_base(base, Path())
        for word in tasks:
            check_task_word(word)
        print(f"looking at {' '.join(map(sanitize, adapters))} ...", flush=True)
        from evox_evogm.command.init_settings import init  # torch, which takes seconds
        from evox_evogm.command.printing import silence_transformers

        silence_transformers()
        init(adapters, out, base, tasks)
        return 0

    attempt(action, debug)
