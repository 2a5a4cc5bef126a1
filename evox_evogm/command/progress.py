"""How far a search is: counted from the history, shown as a bar on a terminal, else as lines."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from evox_evogm.problems.evaluation import cost_of


@dataclass(frozen=True)
class Progress:
    """What is known after an evaluation.

    :param done: full evaluations made, see `Evaluation.cost`.
    :param budget: the most full evaluations.
    :param score: of this evaluation, higher is better; -inf if it failed.
    :param best: the best score so far; -inf if there is none.
    :param seconds: since the search began or went on.
    :param seconds_left: as expected from the evaluations of this process.
    """

    done: float
    budget: int
    score: float
    best: float
    seconds: float
    seconds_left: float

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds_left), 60)
        done = f"{self.done:.0f} of {self.budget} evaluations"
        return f"{done}, best score {self.best:.4f}, {minutes} min {seconds:02d} s left"


OnProgress = Callable[[Progress], None]


def full_evaluations(records: Sequence[dict]) -> float:
    """The full evaluations that a history took, see `Evaluation.cost`."""
    return sum(cost_of(record) for record in records)


class ProgressCounter:
    """Counts the evaluations of a run as its problem reports them.

    :param budget: the most full evaluations.
    :param records: the history, which has an evaluation before it is reported.
    :param position: how many of the records were made in steps that are over.
    :param on_progress: called after every evaluation.
    """

    def __init__(
        self, budget: int, records: Sequence[dict], position: int, on_progress: OnProgress
    ):
        self.budget = budget
        self.records = records
        self.position = position
        self.on_progress = on_progress
        self.known = full_evaluations(records)  # made by an earlier process
        self.started = time.monotonic()

    @property
    def done(self) -> float:
        """Full evaluations that the search has come to."""
        return full_evaluations(self.records[: self.position])

    def report(self, evaluations: Sequence) -> None:
        """Count evaluations that were made or repeated together."""
        for _ in evaluations:
            self.position += 1
            self.on_progress(self._progress())

    def _progress(self) -> Progress:
        scores = [score_of(record) for record in self.records[: self.position]]
        done, seconds = self.done, time.monotonic() - self.started
        made = max(1.0, done - self.known)
        left = seconds / made * (self.budget - done)
        return Progress(done, self.budget, scores[-1], max(scores), seconds, left)


def score_of(record: dict) -> float:
    """The score of an evaluation in the history; -inf if it failed."""
    return float("-inf") if record["score"] is None else record["score"]


class ProgressLines:
    """Prints a line now and then, and one for the first and the last evaluation.

    :param console: where the lines go.
    :param seconds: the least time between two lines.
    """

    def __init__(self, console: Console, seconds: float = 10.0):
        self.console = console
        self.seconds = seconds
        self.shown = float("-inf")  # when, in seconds of the clock

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.done >= progress.budget or now - self.shown > self.seconds:
            self.console.print(str(progress))
            self.shown = now

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass


class ProgressBar:
    """Shows a bar on a terminal, which stays when the search is over."""

    def __init__(self, console: Console):
        text = TextColumn("{task.description}", markup=False)
        self.bar = Bar(BarColumn(bar_width=16), text, console=console, refresh_per_second=4)
        self.task = self.bar.add_task("the first evaluations ...", total=None)

    def __call__(self, progress: Progress) -> None:
        self.bar.update(
            self.task,
            total=progress.budget,
            completed=progress.done,
            description=str(progress),
        )

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()


def show_progress(console: Console) -> ProgressLines | ProgressBar:
    """What shows the progress of a search, as a context: a bar on a terminal, lines elsewhere."""
    return ProgressBar(console) if console.is_terminal else ProgressLines(console)
