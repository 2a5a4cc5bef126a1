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
    for near in get_close_matches(path.name, names):
        # An ending in common, such as .jsonl, does not make two names alike.
        other = Path(near)
        if other.suffix != path.suffix or get_close_matches(path.stem, [other.stem]):
            return f"; did you mean {str(path.parent / near)!r}?"
    return ""
