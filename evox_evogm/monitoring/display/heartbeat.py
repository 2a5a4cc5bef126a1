"""A line every minute, while something takes long that has no progress of its own."""

import time
from threading import Event, Thread

EVERY = 60.0  # seconds


class Heartbeat:
    """Inside the block a line says every so often that the work goes on.

    :param words: what is done.
    :param every: seconds between two lines.
    """

    def __init__(self, words: str, every: float = EVERY):
        self.words = words
        self.every = every
        self._done = Event()
        self._thread = Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        start = time.monotonic()
        while not self._done.wait(self.every):
            passed = (time.monotonic() - start) / 60
            print(f"    still {self.words}, {passed:.0f} min so far", flush=True)
