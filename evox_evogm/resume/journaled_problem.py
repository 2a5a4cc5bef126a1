"""A problem whose evaluations are written to a journal, or taken from it where it has them."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from evox.core import Problem

from evox_evogm.resume.journal import Journal, from_json, to_json
from evox_evogm.resume.ranks import read_on_rank_0

RECOMMENDED = "recommended"  # marks the record of what was evaluated outside of steps


class JournaledProblem(Problem):
    """Evaluates populations, and keeps what it evaluated.

    What is evaluated outside of steps, such as the point that an algorithm recommends at the end,
    has a mark in its record. A search that goes on with more steps passes over it.

    A problem with `on_evaluations` and `load_history` evaluates by candidates: a block of the
    journal is what it evaluates together, and a record is all that an evaluation holds. Of any
    other problem a block is a population, and a record is a point, its fitness and its seconds.

    :param problem: the problem that evaluates.
    :param journal: where evaluations are written to; None on all ranks but rank 0.
    :param describe: what else to write down with the evaluations of a step, by its number from 0.
    """

    def __init__(
        self, problem: Problem, journal: Journal | None, describe: Callable[[int], Mapping]
    ):
        super().__init__()
        self.problem = problem
        self.journal = journal
        self.describe = describe
        self.step = 0
        self.position = 0  # how many evaluations of the journal have been made or repeated
        self.stepping = False  # whether evaluations are those of a step
        self.by_candidates = hasattr(problem, "load_history")
        if self.by_candidates:
            self.listener, problem.on_evaluations = problem.on_evaluations, self._note_candidates

    @contextmanager
    def in_step(self, number: int) -> Iterator[None]:
        """A context in which evaluations are those of a step.

        :param number: of the step, from 0.
        """
        self.step, self.stepping = number, True
        try:
            yield
        finally:
            self.stepping = False

    def load_history(self) -> None:
        """Load the records of the journal into a problem that evaluates by candidates.

        Failures that no state counts are forgotten, with what was written after them. These
        evaluations are made and written again.
        """
        if not self.by_candidates:
            return
        journal = self.journal
        records = read_on_rank_0(lambda: journal.records if journal is not None else [])
        self.problem.load_history(records)
        if self.journal is None:
            return
        for number in range(self.position, len(records)):
            if records[number].get("failure"):
                self.journal.cut(number)
                return

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        """Evaluate a population, or find it in the journal.

        :param pop: a `(P, n)` tensor of points.
        :return: what the problem returns. Where the journal has the fitness, a `(P,)` or `(P, M)`
            tensor of the points' dtype.
        :raises ValueError: if the journal has other points at this place: the search does not
            repeat itself.
        """
        if self.by_candidates:
            return self.problem.evaluate(pop)
        found = read_on_rank_0(lambda: self._find(pop))
        if found is None:
            fitness = self._evaluate_new(pop)
        else:
            fitness = torch.tensor(from_json(found), dtype=pop.dtype, device=pop.device)
        self.position += len(pop)
        return fitness

    def _find(self, pop: torch.Tensor) -> list | None:
        """The fitness of a population as the journal has it, or None where the journal ends."""
        found = self._next_records(len(pop))
        if not found:
            return None
        self._check_repeated(found, pop.detach().tolist())
        return [record["fitness"] for record in found]

    def _evaluate_new(self, pop: torch.Tensor) -> torch.Tensor:
        """Evaluate a population, and write a record a point."""
        start = time.perf_counter()
        fitness = self.problem.evaluate(pop)
        seconds = (time.perf_counter() - start) / len(pop)
        if self.journal is not None:
            rows = []
            for point, value in zip(pop.detach().tolist(), fitness.tolist(), strict=True):
                rows.append({"coefficients": point, "fitness": value, "seconds": seconds})
            self._append(rows)
        return fitness

    def _note_candidates(self, evaluations: list) -> None:
        """Write what a problem has evaluated by candidates, or check that the journal has it."""
        if self.journal is not None:
            found = self._next_records(len(evaluations))
            if found:
                self._check_repeated(found, [list(e.coefficients) for e in evaluations])
            else:
                self._append([evaluation.as_record() for evaluation in evaluations])
        self.position += len(evaluations)
        if self.listener is not None:
            self.listener(evaluations)

    def _next_records(self, count: int) -> list[dict]:
        """The next records of the journal, or fewer where it ends.

        In a step those of points that were evaluated outside of steps are passed over.
        """
        assert self.journal is not None
        records = self.journal.records
        if self.stepping:
            while self.position < len(records) and RECOMMENDED in records[self.position]:
                self.position += 1
        return records[self.position : self.position + count]

    def _append(self, rows: list[dict]) -> None:
        """Write rows as one block, each with its place in the search."""
        assert self.journal is not None
        records = []
        for number, row in enumerate(rows, self.position):
            place: dict[str, Any] = {"evaluation": number, "step": self.step}
            if not self.stepping:
                place[RECOMMENDED] = True
            records.append({**place, **self.describe(self.step), **to_json(row)})
        self.journal.append(records)

    def _check_repeated(self, found: list[dict], points: list) -> None:
        """Refuse points that are not those of the journal.

        :param found: records.
        :param points: coefficients of as many points.
        :raises ValueError: if they differ.
        """
        assert self.journal is not None
        if [record["coefficients"] for record in found] != to_json(points):
            expected = f"expected to repeat evaluation {self.position} of step {self.step}"
            raise ValueError(
                f"{self.journal.path}: {expected}, found other points; "
                "this search was made or seeded differently, or in another environment"
            )
