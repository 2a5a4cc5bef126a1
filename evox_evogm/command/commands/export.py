"""`evogm export RUN`: the merge of a run as an adapter, a model or a recipe."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from evox_evogm.command.commands.attempt import attempt
from evox_evogm.command.commands.options import Debug, Device

Kind = Literal["adapter", "compressed", "model", "mergekit"]


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)
    ],
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--as",
            metavar="KIND",
            help="adapter, compressed (the default with --rank or --tolerance), model or mergekit.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder; by default RUN/export-KIND.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="float32, bfloat16, float16; of adapters also experts."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of a compressed adapter, at most.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Relative error of a compressed adapter, such as 0.05.")
    ] = None,
    front: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="A merge of the front of objective: pareto, by its number in the report.",
        ),
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="best_solution.json of the published code; RUN may then be a settings file.",
        ),
    ] = None,
    strict_licences: Annotated[
        bool, typer.Option("--strict-licences", help="Refuse unknown or conflicting licences.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what is in --out.")] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it, private.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Name of the base in the adapter."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Upload it for everybody.")] = False,
    settings: Annotated[
        Path | None, typer.Option(help="Settings file, where it was moved since the run.")
    ] = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Write the merge of a run for use elsewhere. It is loaded again, compared and scored."""

    def action() -> int:
        from evox_evogm.command.export_options import check_options

        options: dict[str, object] = {"rank": rank, "tolerance": tolerance, "front": front}
        options |= {"settings": settings, "from": published}
        options |= {"public": public, "push_to_hub": push_to_hub}
        check_options(run, kind, options)
        from evox_evogm.command.export_run import Wanted, export, upload  # torch takes seconds
        from evox_evogm.command.exports.hub import check_repo_id
        from evox_evogm.command.printing import silence_transformers

        silence_transformers()
        compressed = rank is not None or tolerance is not None
        chosen = kind or ("compressed" if compressed else None)
        further = {"strict_licences": strict_licences, "replace": replace, "base": base}
        if push_to_hub is not None:
            check_repo_id(push_to_hub)  # before the work, not after it
        wanted = Wanted(chosen, out, dtype, rank, tolerance, further, front, device)
        exported = export(run, wanted, settings, published)
        if push_to_hub is not None:
            folder = exported.folder
            upload(folder, push_to_hub, private=not public, strict_licences=strict_licences)
        return 0

    attempt(action, debug)
