"""What is told of every evaluation: displays, trackers, and functions of yours.

A callback is called with a `Progress` after every evaluation. If it is a context too, as displays
and trackers are, it is entered before the first evaluation and left after the last one.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from evox_evogm.monitoring.progress import Progress

log = logging.getLogger(__name__)
Callback = Callable[[Progress], Any]


class Callbacks:
    """Several callbacks as one.

    They are begun before the first evaluation, and ended with this context. A callback that fails
    is left out from then on, with one warning: the search goes on.

    :param callbacks: each is called with a `Progress`.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        self.running = list(callbacks)
        self.entered: list[Any] = []  # contexts that are to be left
        self.begun = False

    def __call__(self, progress: Progress) -> None:
        if not self.begun:
            self._begin()
        for callback in list(self.running):
            self._attempt(callback, partial(callback, progress))

    def _begin(self) -> None:
        self.begun = True
        for callback in list(self.running):
            if hasattr(callback, "__enter__"):
                self._attempt(callback, callback.__enter__)
                if callback in self.running:
                    self.entered.append(callback)

    def __enter__(self) -> "Callbacks":
        return self

    def __exit__(self, *error) -> None:
        if not self.begun:
            return
        self.begun = False
        while self.entered:
            callback = self.entered.pop()
            self._attempt(callback, partial(callback.__exit__, *error))

    def log_numbers(self, numbers: dict[str, float]) -> None:
        """Give the trackers among the callbacks the numbers of the end of a run.

        :param numbers: by name.
        """
        if not self.begun:
            self._begin()
        for callback in list(self.running):
            if hasattr(callback, "log_numbers"):
                self._attempt(callback, partial(callback.log_numbers, numbers))

    def _attempt(self, callback: Callback, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self.running.remove(callback)
            self._leave(callback, error)
            name = type(callback).__name__
            if hasattr(callback, "__qualname__"):  # a function
                name = callback.__qualname__
            what = f"{type(error).__name__}: {error}"
            log.warning("%s has failed and is left out from here on: %s", name, what)

    def _leave(self, callback: Any, error: Exception) -> None:
        """End a callback that has failed, if it has begun. It is warned of once."""
        if callback in self.entered:
            self.entered.remove(callback)
            with suppress(Exception):
                callback.__exit__(type(error), error, error.__traceback__)
