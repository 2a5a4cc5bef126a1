"""What a check of a device has found so far: rows and notes, on disk after each of them.

A part of the check has a share of the minutes. What fails or takes longer is noted, and the next
part goes on.
"""

import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from evox_evogm.resume.atomic_write import atomic_write

JSON = "gpu_check.json"
AGAIN = 15.0  # seconds after which a part that has not ended is stopped again


class OutOfTime(BaseException):
    """The time of a part is over. It is no `Exception`: retries would catch that, and go on."""


class Record:
    """Rows of numbers and notes, written to a file whenever one is added.

    :param folder: where the file goes.
    :param minutes: what all parts together may take.
    """

    def __init__(self, folder: Path, minutes: float):
        self.folder = folder
        self.end = time.monotonic() + 60 * minutes
        self.seconds = 60 * minutes
        self.machine: dict = {}
        self.rows: list[dict] = []
        self.notes: list[dict] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def add(self, part: str, **values) -> None:
        """Add a row, print it, and write the file."""
        row = {"part": part, **values}
        self.rows.append(row)
        words = [f"{name} {_short(value)}" for name, value in values.items()]
        print(f"{part}: {', '.join(words)}", flush=True)
        self.write()

    def note(self, part: str, text: str, details: str = "") -> None:
        """Add a sentence about a part that did not end, print it, and write the file."""
        note = {"part": part, "note": text}
        if details:
            note["details"] = details
        self.notes.append(note)
        print(f"{part}: {text}", flush=True)
        self.write()

    def write(self) -> None:
        found = {"machine": self.machine, "rows": self.rows, "notes": self.notes}
        atomic_write(self.folder / JSON, (json.dumps(found, indent=1) + "\n").encode())

    def run(self, part: str, share: float, work: Callable[[], object]) -> None:
        """Run a part.

        :param share: of all minutes, that it may take at most.
        """
        limit = min(share * self.seconds, self.seconds_left)
        if limit <= 0:
            self.note(part, "not run: no time is left")
            return
        try:
            with time_limit(limit):
                work()
        except OutOfTime:
            self.note(part, f"ended after its {limit:.0f} s")
        except Exception as error:  # whatever it is, the next part goes on
            message = " ".join(str(error).split())
            text = f"failed: {type(error).__name__}: {message}"
            self.note(part, text, traceback.format_exc())
        free_memory()


def is_right(record: Record, checks: Sequence[str]) -> bool:
    """Whether no part failed, and all that was checked is right.

    :param checks: parts that must have ended. Others may have run out of time.
    """
    for note in record.notes:
        if "details" in note or note["part"] in checks:
            return False
    return all(row.get("ok", True) for row in record.rows)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Inside the block `OutOfTime` is raised when the seconds are over.

    It is raised again as long as the block goes on: what is raised in a finalizer is lost.
    """
    inside = True

    def stop(*_):
        if inside:
            raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN)
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def free_memory() -> None:
    """Give back what a part has left on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
