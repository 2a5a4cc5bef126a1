"""Files that are on disk when a function returns, with their old or their new content whatever happens in between."""

import os
from pathlib import Path


def sync(path) -> None:
    """Have the content of a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    :raises OSError: if it cannot be written; the file is then as before.
    """
    scratch = path.with_name(f"{path.name}.part")
    try:
        scratch.write_bytes(content)
        sync(scratch)
        scratch.replace(path)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk does not say of which file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync(path.parent)
