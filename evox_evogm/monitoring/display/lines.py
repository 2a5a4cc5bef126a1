"""Displays without a terminal: lines now and then, JSON lines, or nothing."""

import json
import time
from typing import TextIO

from rich.console import Console

from evox_evogm.monitoring.progress import Progress
from evox_evogm.resume.journal import to_json


class ProgressLines:
    """Prints a line now and then, and one for the first and the last evaluation.

    :param console: where the lines go.
    :param seconds: the least time between two lines.
    """

    def __init__(self, console: Console, seconds: float = 10.0):
        self.console = console
        self.seconds = seconds
        self.shown = float("-inf")  # when, in seconds of the clock
        self.waiting: Progress | None = None  # what was not shown yet

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.shown > self.seconds:
            self._show(progress)
        else:
            self.waiting = progress

    def _show(self, progress: Progress) -> None:
        self.console.print(str(progress), soft_wrap=True)
        self.shown = time.monotonic()
        self.waiting = None

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        if self.waiting is not None:
            self._show(self.waiting)


class JsonLines:
    """Writes one JSON line for every evaluation that this process makes.

    :param stream: where the lines go.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __call__(self, progress: Progress) -> None:
        if not progress.is_new:
            return
        name = "moving_average" if progress.window else "best"
        counted = {name: progress.shown(progress.best), "done": progress.done}
        self.stream.write(f"{json.dumps(to_json({**progress.record, **counted}))}\n")
        self.stream.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass


class Quiet:
    """Shows nothing."""

    def __call__(self, progress: Progress) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass
