"""A file that has its old or its new content, whatever happens while it is written."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk. On Windows, which opens no folders, nothing is done.

    :raises OSError: if the folder cannot be opened.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; it is on disk when this returns.

    :param path: the file. `NAME.part` beside it holds the content until all of it is on disk.
    :param content: what the file is to hold.
    :raises OSError: if the content cannot be written; the file is then as before.
    """
    scratch = path.with_name(f"{path.name}.part")
    try:
        with open(scratch, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk does not say of which file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)
