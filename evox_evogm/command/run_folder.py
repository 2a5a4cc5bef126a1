"""What a run folder holds beside its history: the settings as used, and digests of what they referred to, so that a run goes
on only as the same run. One process at a time has a folder, by the lock of its journal."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import yaml

from evox_evogm.command.settings import RunSettings
from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.journal import Journal
from evox_evogm.resume.resumable_search import JOURNAL

CONFIG, INPUTS, RESULT = "config.yaml", "inputs.json", "result.json"
FORMAT = 2  # of the folder


class RunLock:
    """A run folder that this process has alone, with its open `journal`.

    :param out: the folder, made if it is missing.
    :raises ValueError: if another process has it, or it holds other files.
    """

    def __init__(self, out: Path):
        _check_run_folder(out)
        self.out, self.made = out, not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(out / JOURNAL)

    def release(self) -> None:
        """Let another process have the folder, and leave nothing behind where no run has begun."""
        if (
            not self.journal.file.closed
            and not _has_begun(self.out)
            and _is_empty(self.journal.path)
        ):
            self.journal.path.unlink()
            if self.made and not any(self.out.iterdir()):
                self.out.rmdir()
        self.journal.close()


def _is_empty(path: Path) -> bool:
    return path.is_file() and not path.stat().st_size


def _has_begun(out: Path) -> bool:
    return (out / CONFIG).exists()


def _check_run_folder(out: Path) -> None:
    """Refuse what is neither new nor empty, nor a run, nor one that ended before it began."""
    if not out.exists() or (out.is_dir() and _has_begun(out)):
        return
    begun = {f"{CONFIG}.part", INPUTS, f"{INPUTS}.part"}
    if not out.is_dir() or not all(
        p.name in begun or (p.name == JOURNAL and _is_empty(p)) for p in out.iterdir()
    ):
        raise ValueError(
            f"out: expected a new or empty folder or an earlier run, found {out} with other files in it"
        )


def write_inputs(
    out: Path, settings: RunSettings, digests: Mapping[str, str], made_with: Mapping
) -> None:
    """Write down what a run is made of, before its first evaluation.

    :param digests: of what the settings refer to, by name.
    :param made_with: what else may explain a difference, but does not keep a run from going on.
    """
    inputs = {"format": FORMAT, "sha256": digests, "made with": made_with}
    atomic_write(out / INPUTS, (json.dumps(inputs, indent=2) + "\n").encode())
    atomic_write(
        out / CONFIG, yaml.safe_dump(asdict(settings), sort_keys=False).encode()
    )  # last: it makes the folder a run


def saved_settings(out: Path) -> dict | None:
    """The settings of the run in a folder, or None where there is none yet.

    :raises ValueError: if they cannot be read, or are of another version.
    """
    if not _has_begun(out):
        return None
    _saved_inputs(out)
    return _read_table(out / CONFIG, yaml.safe_load)


def _saved_inputs(out: Path) -> dict[str, str]:
    inputs = _read_table(out / INPUTS, json.loads)
    if inputs.get("format") != FORMAT or not isinstance(inputs.get("sha256"), dict):
        raise ValueError(
            f"out: expected a run folder of format {FORMAT}, found {inputs.get('format')} in {out / INPUTS}, "
            "which another version of evox-evogm wrote"
        )
    return inputs["sha256"]


def _read_table(path: Path, parse) -> dict:
    try:
        table = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"out: expected {path} beside the history of the run, found none"
        ) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(
            f"out: expected {path} as evogm wrote it, found it damaged: {error}"
        ) from error
    if not isinstance(table, dict):
        raise ValueError(f"out: expected {path} as evogm wrote it, found it damaged: not a table")
    return table


def check_same_settings(settings: RunSettings, saved: dict, out: Path) -> None:
    """Refuse to go on with other settings. `auto` agrees with whatever was chosen, and a path with a table of nothing else.

    :raises ValueError: naming the first setting that differs.
    """
    for name, value in asdict(settings).items():
        before = saved.get(name)
        if name in ("dtype", "mode") and value == "auto":
            continue
        if name == "mode" and isinstance(value, str) and isinstance(before, dict):
            before = value if set(before.values()) == {value} else before
        # The order of the experts is that of the coefficients.
        reordered = (
            name == "experts"
            and isinstance(value, dict)
            and isinstance(before, dict)
            and list(value) != list(before)
        )
        if value != before or reordered:
            raise ValueError(
                f"out: expected the settings of the run in {out}, found {name} {value!r} where it has {before!r}; "
                "take another folder, or the same settings"
            )


def check_same_inputs(digests: Mapping[str, str], out: Path) -> None:
    """Refuse to go on with another base, other adapters or tasks under the same names.

    :raises ValueError: naming the first input that differs.
    """
    before = _saved_inputs(out)
    for name in sorted(digests.keys() | before.keys()):
        if digests.get(name) != before.get(name):
            raise ValueError(
                f"out: expected the inputs of the run in {out}, found {name} changed since"
            )


def sha256(*parts: bytes) -> str:
    """The digest of some bytes, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
