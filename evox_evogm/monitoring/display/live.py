"""The display of a search on a terminal, drawn again about once a second."""

import time
from dataclasses import replace
from threading import Event, Thread

from rich.console import Console
from rich.live import Live

from evox_evogm.monitoring.display.facts import RunFacts
from evox_evogm.monitoring.display.panel import panel
from evox_evogm.monitoring.progress import Progress

SECONDS = 1.0  # the least time between two drawings
SHARE = 0.005  # of the time, the most that drawing takes


class LiveDisplay:
    """Shows best and mean score, scores by task, speed, time left and coefficients of the best.

    Nothing is computed but when it is drawn. Where drawing takes long, as over a slow line, it is
    drawn more rarely, so that it takes at most half a per cent of the time.

    :param console: a terminal.
    :param facts: the names of what is shown.
    """

    def __init__(self, console: Console, facts: RunFacts):
        self.console = console
        self.facts = facts
        self.progress: Progress | None = None
        self.told = 0.0  # when, in seconds of the clock
        self.live = Live(get_renderable=self._panel, console=console, auto_refresh=False)
        self.drawing = 0.0  # seconds that all drawings took
        self.pause = SECONDS
        self.ended = Event()
        self.thread = Thread(target=self._keep_drawing, name="evogm display", daemon=True)

    def __call__(self, progress: Progress) -> None:
        self.progress, self.told = progress, time.monotonic()

    def _panel(self):
        progress = self.progress
        if progress is not None:
            left = progress.seconds_left - (time.monotonic() - self.told)
            progress = replace(progress, seconds_left=max(0.0, left))
        return panel(progress, self.facts, self.console)

    def _keep_drawing(self) -> None:
        while not self.ended.wait(self.pause):
            self._draw()

    def _draw(self) -> None:
        start = time.monotonic()
        self.live.refresh()
        took = time.monotonic() - start
        self.drawing += took
        self.pause = max(SECONDS, took / SHARE)

    def __enter__(self):
        self.live.start(refresh=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()
        self.live.stop()  # draws the last state, which stays
