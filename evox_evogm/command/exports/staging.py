"""A folder that is there as a whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evox_evogm.resume.atomic_write import sync_folder


@contextmanager
def staged(out, *, replace: bool = False) -> Iterator[Path]:
    """Inside the block a folder beside `out` to write to. Afterwards it has the name `out`.

    After an error neither the folder nor anything in it is left, and `out` is as it was.

    :param out: new or empty.
    :param replace: whether what stands in `out` may go.
    :raises ValueError: if `out` cannot be written.
    """
    out = Path(out)
    check_free(out, replace=replace)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    if part.exists():  # of a process that was killed
        shutil.rmtree(part)
    part.mkdir()
    try:
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                _sync_file(path)
        _swap(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_free(out: Path, *, replace: bool) -> None:
    """Refuse a folder that an export would overwrite.

    :raises ValueError: if it holds something, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: expected a folder, found the file {out}")
    if out.is_dir() and any(out.iterdir()) and not replace:
        raise ValueError(f"out: expected a new or empty folder, found {out} with files in it")


def _swap(part: Path, out: Path) -> None:
    """Give a folder its name, and remove what had it."""
    old = out.with_name(f"{out.name}.old")
    if out.exists():
        if old.exists():
            shutil.rmtree(old)
        out.rename(old)
    part.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
