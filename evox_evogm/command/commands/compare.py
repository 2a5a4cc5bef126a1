"""`evogm compare FIRST SECOND`: two models on the same examples, paired."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from evox_evogm.command.commands.attempt import attempt
from evox_evogm.command.commands.options import Debug
from evox_evogm.monitoring.escaping import sanitize

if TYPE_CHECKING:
    from evox_evogm.command.compare_models import Model

WORD = "A run folder, RUN:ROW, a file of evogm score, FILE:ROW, or an adapter folder."


def compare(
    first: Annotated[str, typer.Argument(metavar="FIRST", help=WORD, show_default=False)],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="Likewise.", show_default=False)],
    settings: Annotated[
        Path | None,
        typer.Option(
            help="Settings file whose tasks score adapter folders; by default that of the run.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[Literal["dev", "test"], typer.Option(help="Which examples.")] = "test",
    debug: Debug = False,
) -> None:
    """Compare two models on the same examples: by task, with paired standard errors.

    RUN stands for the merge of a run, RUN:ROW for another row of its table, such as
    runs/mine:average.
    """

    def action() -> int:
        from evox_evogm.command.run_files import check_scored

        for word in (first, second):
            check_scored(word)
        print(sanitize(f"comparing {first} with {second} on {split} ..."), flush=True)
        from evox_evogm.command.compare_models import (  # torch, which takes seconds
            compare,
            print_comparison,
            verdict,
        )
        from evox_evogm.command.printing import plain_console

        models = read_both(first, second, settings)
        lines = compare(*models, split)
        print_comparison(lines, plain_console())
        print(f"\nfirst: {models[0].name}\nsecond: {models[1].name}")
        print(verdict(*models, split, lines[-1]))
        return 0

    attempt(action, debug)


def read_both(first: str, second: str, settings: Path | None) -> "tuple[Model, Model]":
    """Both models. Adapters are scored together, on the tasks of the settings or of the run."""
    from evox_evogm.command.compare_models import needs_scoring, read_model

    words = (first, second)
    adapters = [word for word in words if needs_scoring(word)]
    scored = {}
    if adapters:
        scored = score_adapters(
            adapters, [word for word in words if word not in adapters], settings
        )
    models = [scored[word] if word in scored else read_model(word) for word in words]
    return models[0], models[1]


def score_adapters(
    adapters: list[str], others: list[str], settings: Path | None
) -> "dict[str, Model]":
    """The models of adapter folders, scored now.

    :param others: the word that is no adapter, if there is one: its run has settings.
    :raises ValueError: if nothing says on which tasks.
    """
    from evox_evogm.command.compare_models import Model
    from evox_evogm.command.opened_run import settings_of_run
    from evox_evogm.command.printing import silence_transformers
    from evox_evogm.command.result import examples_table
    from evox_evogm.command.run_folder import has_begun
    from evox_evogm.command.score_models import score_words
    from evox_evogm.command.settings_file import read_settings
    from evox_evogm.monitoring.display.heartbeat import Heartbeat

    silence_transformers()
    runs = []
    for word in others:
        place = Path(word) if Path(word).exists() else Path(word.rpartition(":")[0])
        if place.is_dir() and has_begun(place):
            runs.append(place)
    if settings is not None:
        found, folder = read_settings(settings)
    elif runs:
        found, folder = settings_of_run(runs[0], None)
    else:
        expected = "expected --settings, whose tasks score the adapters"
        raise ValueError(f"compare: {expected}, found none")
    base = f"reading the base model {found.base} and the tasks"
    print(sanitize(f"{base}, and scoring {' and '.join(adapters)} ..."), flush=True)
    with Heartbeat("scoring"):
        rows, tasks = score_words(found, folder, adapters)
    ids = examples_table(rows, tasks)["examples"]
    models = {}
    for word, row in zip(adapters, rows, strict=True):
        models[word] = Model(word, row.examples, ids, {})
    return models
