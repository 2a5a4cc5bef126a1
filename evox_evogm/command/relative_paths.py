"""Paths as settings name them: from the folder of their file, from the home folder, or absolute.

Where one is near the other they are written as relative, so that both can be moved together.
"""

import os
from pathlib import Path

STEPS_UP = 2  # folders, from a settings file to one that an adapter lies below
LEAST_SHARED = 2  # parts of a path, `/home` and less, below which things are not moved together
HOME = "~"  # at the beginning of a path


def with_home(path: str) -> str:
    """A path with the home folder in place of `~` at its beginning; all else as it is.

    `~name` is a name as any other.
    """
    is_in_home = path.replace("\\", "/").partition("/")[0] == HOME
    return os.path.expanduser(path) if is_in_home else path


def place_of(path: str, folder: Path) -> Path:
    """Where the path in a settings file leads to.

    :param folder: the folder that relative paths start from.
    """
    return folder / with_home(path)


def path_from(path: Path, folder: Path) -> str:
    """A path as a settings file in a folder has it.

    It is relative below the folder and a short way beside it, so that both can be moved together,
    and absolute elsewhere. A link stays a link.

    :param path: of something that is there.
    """
    folder = folder.resolve()
    given = Path(os.path.abspath(path))
    for place in (given, path.resolve()):
        if place.exists() and place.samefile(path) and is_near(place, folder):
            return Path(os.path.relpath(place, folder)).as_posix()
    return str(path.resolve())


def is_near(place: Path, folder: Path) -> bool:
    """Whether a place lies below a folder, or below one of the next folders above it."""
    if place.is_relative_to(folder):
        return True
    for above in folder.parents[:STEPS_UP]:
        if place.is_relative_to(above):
            return len(above.parts) > LEAST_SHARED
    return False


def path_between(folder: Path, start: Path) -> str | None:
    """The relative path from one folder to another, or None between two drives of Windows."""
    try:
        return os.path.relpath(folder.resolve(), start.resolve())
    except ValueError:
        return None
