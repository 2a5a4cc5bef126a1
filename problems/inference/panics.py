"""Failures of the tokenizer library as ordinary errors.

`tokenizers` is written in Rust. Where a tokenizer.json holds nonsense, its code may panic, and a
panic arrives in Python as a `BaseException`, which `except Exception` lets through.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Inside the block a panic of Rust code becomes a `ValueError`.

    :raises ValueError: with the first line of the panic.
    """
    try:
        yield
    except BaseException as error:
        # The class lives in no module that could be imported.
        if type(error).__name__ != "PanicException":
            raise
        message = str(error).strip() or "a panic"
        raise ValueError(
            f"tokenizer: expected one that the library can run, found {message.splitlines()[0]!r}; "
            "take tokenizer.json from the base's publisher"
        ) from error
