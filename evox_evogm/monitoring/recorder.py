"""What a monitor keeps outside of a workflow's tensors: histories, a journal, and callbacks."""

import time
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evox_evogm.monitoring.budget import Budget
from evox_evogm.monitoring.callbacks import Callback, Callbacks
from evox_evogm.monitoring.progress import ProgressCounter
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.resume.journal import Journal, to_json
from evox_evogm.resume.journaled_problem import RECOMMENDED
from evox_evogm.resume.ranks import is_rank_0
from evox_evogm.resume.resumable_search import JOURNAL

BY_EXAMPLE = ("examples", "margins", "gradient", "places")  # entries that the journal alone keeps


class Block(NamedTuple):
    """Evaluations that were made together."""

    size: int
    """P of their population."""
    records: list[dict]


class Recorder:
    """Writes evaluations down, and tells callbacks of them.

    :param callbacks: called with a `Progress` after every evaluation, on rank 0.
    :param folder: where `history.jsonl` is written, or None.
    :param limit: of the search, for the time that is left.
    :param by_candidates: whether a problem reports its evaluations itself.
    :param several_objectives: whether an evaluation has no one fitness.
    :raises ValueError: if the folder holds a history, or another process has it.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        folder: Path | None,
        limit: Budget,
        *,
        by_candidates: bool,
        several_objectives: bool = False,
    ):
        self.callbacks = Callbacks(callbacks if is_rank_0() else [])
        self.limit = limit
        self.by_candidates = by_candidates
        self.several_objectives = several_objectives
        self.minimised = True  # the fitness of a problem that reports nothing itself
        self.journal = _new_journal(folder) if folder is not None and is_rank_0() else None
        self.on_minibatches = False
        self.outcomes: list[torch.Tensor] = []
        self.tasks: dict[str, list[torch.Tensor]] = {}  # (P,) of each population
        self.pending: list[Evaluation] = []  # of the present population
        self.counter: ProgressCounter | None = None
        self.count = 0  # evaluations
        self.step = 0
        self.size = 0  # P of the present population
        self.held: list[Block] = []  # since the last step, not written yet
        self.singles: int | None = None  # how many evaluations of one point a step makes
        self.began = time.perf_counter()

    @property
    def has_outputs(self) -> bool:
        """Whether callbacks or a journal get the evaluations."""
        return self.journal is not None or bool(self.callbacks.running)

    def note_candidates(self, evaluations: Sequence[Evaluation]) -> None:
        """Write down evaluations that the problem reports.

        :param evaluations: of merges that were evaluated together.
        """
        self.pending += evaluations
        if self.has_outputs:
            self._add([evaluation.as_record() for evaluation in evaluations])

    def end_population(self, size: int) -> None:
        """Keep the scores by task of the population that was evaluated last.

        :param size: P.
        """
        evaluations, self.pending = self.pending[-size:], []
        names: dict[str, None] = {}
        for evaluation in evaluations:
            names |= dict.fromkeys(evaluation.by_task)
        for name in names:
            scores = [evaluation.by_task.get(name, nan) for evaluation in evaluations]
            self.tasks.setdefault(name, []).append(torch.tensor(scores, device="cpu"))

    def begin_evaluation(self, size: int) -> None:
        """Note when a population begins to be evaluated.

        :param size: P.
        """
        self.size = size
        self.began = time.perf_counter()

    def end_step(self) -> None:
        """Write down what was held back until it is known to belong to a step."""
        found = sum(block.size == 1 for block in self.held)
        usual = found if self.singles is None else min(found, self.singles)
        self._write_held(outside=found - usual)
        self.singles = usual
        self.step += 1

    def note_population(self, points: torch.Tensor, fitness: torch.Tensor) -> None:
        """Write down a population whose problem reports nothing itself.

        :param points: a `(P, n)` tensor.
        :param fitness: a `(P,)` or `(P, M)` tensor, as the problem gives it.
        """
        seconds = (time.perf_counter() - self.began) / len(points)
        rows = []
        for point, value in zip(points.tolist(), fitness.tolist(), strict=True):
            rows.append({"coefficients": point, "fitness": value, "seconds": seconds})
        self._add(rows)

    def _add(self, rows: Sequence[dict]) -> None:
        records: list[dict] = []
        for number, row in enumerate(rows, self.count):
            records.append({"evaluation": number, "step": self.step, **to_json(row)})
        if self.journal is not None:
            # Outside of steps algorithms evaluate one point, the recommended one.
            self.held.append(Block(self.size, records))
            if self.size > 1 and len(self.held) == 1:
                self._write_held()
        self.on_minibatches |= any("places" in record for record in records)
        if self.callbacks.running:
            self._tell([self._without_examples(record) for record in records])
        self.count += len(records)

    def _write_held(self, outside: int = 0) -> None:
        """Write down what was held back.

        :param outside: of how many single points, the first ones, no step is: they are marked.
        """
        for size, records in self.held:
            if size == 1 and outside:
                outside -= 1
                for record in records:
                    record |= {RECOMMENDED: True, "step": max(0, self.step - 1)}
            assert self.journal is not None
            self.journal.append(records)
            self.journal.records.clear()  # they are on disk, and are not read here
        self.held = []

    def _tell(self, records: list[dict]) -> None:
        if self.counter is None:
            minimised = self.minimised and not self.by_candidates
            self.counter = ProgressCounter(
                self.limit,
                [],
                0,
                self.callbacks,
                minimised=minimised,
                on_minibatches=self.on_minibatches,
            )
        self.counter.report(records, self.count)

    def _without_examples(self, record: Mapping[str, Any]) -> dict:
        """A record as displays and trackers get it, with a score that is better when higher."""
        kept = {name: value for name, value in record.items() if name not in BY_EXAMPLE}
        if "score" not in kept:
            fitness = kept["fitness"]
            if isinstance(fitness, list):
                fitness = nan if self.several_objectives else fitness[0]
            score = float(fitness)  # it may be the name of what is not finite
            kept["score"] = (-score if self.minimised else score) if isfinite(score) else None
        return kept

    def close(self, *error) -> None:
        """End displays and trackers, and let another process have the journal.

        :param error: type, error and traceback, if the search ended by one.
        """
        self.callbacks.__exit__(*(error or (None, None, None)))
        if self.journal is not None:
            try:
                self._write_held(outside=len(self.held))
            finally:
                self.journal.close()


def _new_journal(folder: Path) -> Journal:
    """A journal in a folder that has none yet.

    :raises ValueError: if the folder holds a history.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    journal = Journal(path)
    if journal.records:
        journal.close()
        advice = "take another folder, or ResumableSearch, which goes on"
        raise ValueError(
            f"journal: expected a folder without a history, found one in {path}; {advice}"
        )
    return journal
