"""Loading without transformers' table of tensors that a file has and a model does not."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_load_report() -> Iterator[None]:
    """Inside the block transformers logs errors only: whoever loads checks what is missing."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
