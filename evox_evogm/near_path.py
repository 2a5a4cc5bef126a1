"""What a path that does not exist was probably meant to be."""

from difflib import get_close_matches
from pathlib import Path


def near_path(path: Path) -> str:
    """`"; did you mean 'my-adapters'?"`, or nothing where no name beside the path is like it.

    :param path: where nothing is that can be used.
    """
    if path.exists():  # as something else than was expected
        return ""
    try:
        names = [child.name for child in path.parent.iterdir()]
    except OSError:
        return ""
    near = get_close_matches(path.name, names, 1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
