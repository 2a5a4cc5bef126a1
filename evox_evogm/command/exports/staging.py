"""A folder that is there as a whole or not at all."""

import os
import shutil
import tempfile
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
    # Names that nobody else has: folders with the like of `out.old` may be the user's.
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    part, old = work / "new", work / "old"
    try:
        part.mkdir()  # with the permissions of any new folder, which `mkdtemp` does not give
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                _sync_file(path)
        _swap(part, out, old)
    finally:
        if out.exists() or not old.exists():  # else it holds what could not be put back
            shutil.rmtree(work, ignore_errors=True)


def check_free(out: Path, *, replace: bool) -> None:
    """Refuse a folder that an export would overwrite.

    :raises ValueError: if it holds something, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: expected a folder, found the file {out}")
    if out.is_dir() and any(out.iterdir()) and not replace:
        raise ValueError(f"out: expected a new or empty folder, found {out} with files in it")


def _swap(part: Path, out: Path, old: Path) -> None:
    """Give a folder its name, and another one to what had it, which keeps it after an error."""
    try:
        if out.exists():
            out.rename(old)
        part.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    sync_folder(out.parent)


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
