"""How far a search is, counted from its history: what displays and trackers are told."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evox_evogm.monitoring.budget import Budget
from evox_evogm.problems.evaluation import cost_of
from evox_evogm.resume.journaled_problem import RECOMMENDED

WINDOW = 10  # scores on minibatches, of which displays have a moving average
ROUNDING = 1e-6  # of evaluations, which are sums of fractions


@dataclass(frozen=True)
class Progress:
    """What is known after an evaluation.

    :param done: full evaluations made, see `Evaluation.cost`.
    :param limit: the most full evaluations, or the most seconds.
    :param score: of this evaluation, higher is better; -inf if it failed.
    :param best: the best score so far; -inf if there is none. On minibatches, whose scores cannot
        be compared, their moving average.
    :param seconds: since the search began or went on.
    :param seconds_left: as expected from the evaluations of this process.
    :param record: of this evaluation in the history, without numbers by example.
    :param best_record: of the best one so far, or None. On minibatches it is the last one.
    :param scores: of all evaluations so far, in their order.
    :param is_new: whether this process made the evaluation, rather than an earlier one.
    :param speed: full evaluations per minute in this process; 0 if none was made yet.
    :param minimised: whether scores are the negated numbers of a problem that is minimised.
    :param window: how many scores on minibatches `best` is the mean of; 0 without minibatches.
    """

    done: float
    limit: Budget
    score: float
    best: float
    seconds: float
    seconds_left: float
    record: dict = field(default_factory=dict)
    best_record: dict | None = None
    scores: Sequence[float] = ()
    is_new: bool = True
    speed: float = 0.0
    minimised: bool = False
    window: int = 0

    def shown(self, score: float) -> float:
        """A score as the problem gives it."""
        return -score if self.minimised else score

    @property
    def best_error(self) -> str:
        """The standard error of the best score, as it stands after the score; or nothing."""
        error = None if self.window else (self.best_record or {}).get("error")
        return "" if error is None else f" ± {error:.3f}"

    @property
    def share(self) -> float:
        """The share of the budget that is used, from 0 to 1."""
        if self.limit.evaluations is not None:
            return min(1.0, self.done / self.limit.evaluations)
        if self.limit.seconds is None:
            return 0.0
        spent = self.seconds + self.seconds_left
        return min(1.0, self.seconds / spent) if spent else 1.0

    def __str__(self) -> str:
        best = f"{self.shown(self.best):.4f}{self.best_error}"
        name = f"mean score of the last {self.window}" if self.window else "best score"
        return f"{self.evaluations}, {name} {best}, {self.time_left}"

    @property
    def evaluations(self) -> str:
        """How many evaluations were made, of how many."""
        if self.limit.evaluations is None:
            return f"{self.done:.0f} evaluations"
        return f"{self.done:.0f} of {self.limit.evaluations} evaluations"

    @property
    def time_left(self) -> str:
        """The time that is left, or without a limit the time that was used, in words."""
        time_, what = self.seconds_left, "left"
        if self.limit == Budget():
            time_, what = self.seconds, "so far"
        minutes, seconds = divmod(round(time_), 60)
        if minutes >= 60:
            return f"{minutes // 60} h {minutes % 60:02d} min {what}"
        return f"{minutes} min {seconds:02d} s {what}"


OnProgress = Callable[[Progress], None]


def full_evaluations(records: Sequence[dict]) -> float:
    """The full evaluations that a history took, see `Evaluation.cost`."""
    return sum(cost_of(record) for record in records)


def searched(records: Sequence[dict]) -> list[dict]:
    """The evaluations of a history that steps made: all but those of recommended points."""
    return [record for record in records if RECOMMENDED not in record]


class ProgressCounter:
    """Counts the evaluations of a run as its problem reports them.

    :param limit: the most full evaluations, or the most seconds.
    :param records: the history when the search begins or goes on.
    :param position: how many of the records were made in steps that are over.
    :param on_progress: called after every evaluation.
    :param seconds: that the search took in earlier processes.
    :param minimised: see `Progress`.
    :param on_minibatches: whether scores are of minibatches.
    """

    def __init__(
        self,
        limit: Budget,
        records: Sequence[dict],
        position: int,
        on_progress: OnProgress,
        seconds: float = 0.0,
        *,
        minimised: bool = False,
        on_minibatches: bool = False,
    ):
        self.limit = limit
        self.minimised = minimised
        self.on_progress = on_progress
        self.known = len(records)  # made by an earlier process
        self.seconds_before = seconds
        self.done = 0.0  # full evaluations that the search has come to
        self.made = 0.0  # those of this process
        self.scores: list[float] = []
        self.best_record: dict | None = None
        self.on_minibatches = on_minibatches
        for record in searched(records[:position]):
            self._add(record)
        self.started = time.monotonic()

    @property
    def seconds_used(self) -> float:
        """Of the search, over all processes."""
        return self.seconds_before + time.monotonic() - self.started

    def report(self, records: Sequence[dict], first: int) -> None:
        """Count evaluations that were made or repeated together.

        :param records: of these evaluations.
        :param first: the place of the first one in the history.
        """
        for number, record in enumerate(records, first):
            self._add(record)
            is_new = number >= self.known
            if is_new:
                self.made += cost_of(record)
            self.on_progress(self._progress(record, is_new))

    def _add(self, record: dict) -> None:
        self.done += cost_of(record)
        score = score_of(record)
        self.scores.append(score)
        if self.on_minibatches:
            self.best_record = record if record["score"] is not None else self.best_record
            return
        if self.best_record is None or score > score_of(self.best_record):
            self.best_record = record if record["score"] is not None else None

    def _progress(self, record: dict, is_new: bool) -> Progress:
        best = float("-inf") if self.best_record is None else score_of(self.best_record)
        last = [score for score in self.scores[-WINDOW:] if math.isfinite(score)]
        if self.on_minibatches and last:
            best = sum(last) / len(last)
        seconds = time.monotonic() - self.started
        if self.limit.evaluations is not None:
            left = seconds / max(1.0, self.made) * max(0.0, self.limit.evaluations - self.done)
        else:
            left = max(0.0, (self.limit.seconds or 0.0) - self.seconds_used)
        return Progress(
            done=self.done,
            limit=self.limit,
            score=score_of(record),
            best=best,
            seconds=seconds,
            seconds_left=left,
            record=record,
            best_record=self.best_record,
            scores=self.scores,
            is_new=is_new,
            speed=60 * self.made / seconds if seconds else 0.0,
            minimised=self.minimised,
            window=len(last) if self.on_minibatches else 0,
        )


def score_of(record: dict) -> float:
    """The score of an evaluation in the history; -inf if it failed."""
    return float("-inf") if record["score"] is None else record["score"]
