"""Which options of `evogm export` go together, without anything that takes long to import."""

from collections.abc import Mapping
from pathlib import Path

from evox_evogm.command.run_files import check_finished


def check_options(run: Path, kind: str | None, options: Mapping[str, object]) -> None:
    """Refuse options that contradict each other or would do nothing, and a run without a result.

    :param run: the folder of a finished run, or with `from` a settings file.
    :param kind: what is wanted, if it was said.
    :param options: `rank`, `tolerance`, `public`, `push_to_hub`, `front`, `settings` and `from` as
        they were given.
    :raises ValueError: naming the option.
    """
    compressed = options["rank"] is not None or options["tolerance"] is not None
    if compressed and kind not in (None, "compressed"):
        raise ValueError(f"export: expected --rank and --tolerance with compressed, not {kind}")
    if options["public"] and options["push_to_hub"] is None:
        raise ValueError("export: expected --public with --push-to-hub, found it alone")
    if options["front"] is not None and options["from"] is not None:
        raise ValueError(
            "export: expected --front or --from, found both; the published code has no front"
        )
    if not run.is_file():
        check_finished(run)
        return
    for option in ("settings", "front"):
        if options[option] is not None:
            raise ValueError(
                f"export: expected --{option} with the folder of a finished run, found the "
                f"settings file {run}"
            )
