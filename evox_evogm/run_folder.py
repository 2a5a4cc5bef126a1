"""What a run folder holds beside its history: the settings as used, and what they referred to, so that a run goes on only as
the
same run."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import yaml

from evox_evogm.settings import RunSettings

CONFIG, INPUTS, RESULT = "config.yaml", "inputs.json", "result.json"
FORMAT = 1  # of the folder


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it has its old or its new content, whatever happens."""
    scratch = path.with_name(f"{path.name}.part")
    with open(scratch, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def is_unused(out: Path) -> bool:
    """Whether a folder is still to be made, or empty."""
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


def write_inputs(out: Path, settings: RunSettings, digests: dict[str, str]) -> None:
    """Write down what a run is made of, before its first evaluation."""
    write_whole(out / INPUTS, json.dumps({"format": FORMAT, "sha256": digests}, indent=2) + "\n")
    write_whole(out / CONFIG, yaml.safe_dump(asdict(settings), sort_keys=False))  # last: it makes the folder a run


def saved_settings(out: Path) -> dict | None:
    """The settings of the run in a folder, or None where there is none yet.

    :raises ValueError: if the folder holds something else, or a run of a newer version.
    """
    if is_unused(out):
        return None
    if not out.is_dir() or not (out / CONFIG).is_file():
        if out.is_dir() and all(path.suffix == ".part" or path.name == INPUTS for path in out.iterdir()):
            return None  # it ended before it began
        raise ValueError(f"out: expected a new or empty folder or an earlier run, found {out} with other files in it")
    saved = yaml.safe_load((out / CONFIG).read_text(encoding="utf-8"))
    inputs = json.loads((out / INPUTS).read_text(encoding="utf-8"))
    if inputs.get("format") != FORMAT:
        raise ValueError(
            f"out: expected a run folder of format {FORMAT}, found {inputs.get('format')} in {out / INPUTS}, "
            "which another version of evox-evogm wrote"
        )
    return saved


def check_same_settings(settings: RunSettings, saved: dict, out: Path) -> None:
    """Refuse to go on with other settings. `auto` agrees with whatever was chosen, and a path with a table of nothing else.

    :raises ValueError: naming the first setting that differs.
    """
    for name, value in asdict(settings).items():
        before = saved.get(name)
        if name in ("dtype", "path") and value == "auto":
            continue
        if name == "path" and isinstance(value, str) and isinstance(before, dict):
            before = value if set(before.values()) == {value} else before
        if value != before:
            raise ValueError(
                f"out: expected the settings of the run in {out}, found {name} {value!r} where it has {before!r}; "
                "take another folder, or the same settings"
            )


def check_same_inputs(digests: dict[str, str], out: Path) -> None:
    """Refuse to go on with other adapters or tasks under the same names.

    :raises ValueError: naming the first input that differs.
    """
    before = json.loads((out / INPUTS).read_text(encoding="utf-8"))["sha256"]
    for name in sorted(digests.keys() | before.keys()):
        if digests.get(name) != before.get(name):
            raise ValueError(f"out: expected the inputs of the run in {out}, found {name} changed since")


def sha256(*parts: bytes) -> str:
    """The digest of some bytes, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
