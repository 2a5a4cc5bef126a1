"""The steps of a run's search, until its budget is used or it gains too little."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evox.workflows import StdWorkflow

from evox_evogm.command.objective_errors import error_of_record
from evox_evogm.command.search_algorithm import Search, describe_step
from evox_evogm.command.search_limit import SearchLimit
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.stopping_rule import has_converged
from evox_evogm.monitoring.progress import OnProgress, ProgressCounter, searched
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.resume.journal import Journal
from evox_evogm.resume.resumable_search import ResumableSearch


class SearchLoop:
    """Makes the steps of a search, and keeps its history.

    - `records`: the history, a record per evaluation, without numbers by example.
    - `stopped`: whether the search ended before its budget.

    :param workflow: steps the algorithm.
    :param algorithm: as it was made; its settings say where a step stands in the rounds. What it
        has learnt is in `workflow.algorithm`.
    :param problem: of the search. It reports to the loop, which tells how far the search is.
    :param limit: how far the search goes.
    """

    def __init__(
        self,
        workflow: StdWorkflow,
        algorithm: Search,
        problem: LoRAMergeProblem,
        limit: SearchLimit,
    ):
        self.workflow = workflow
        self.algorithm = algorithm
        self.problem = problem
        self.limit = limit
        self.records: list[dict] = []
        self.stopped = False
        self._counter: ProgressCounter | None = None
        self._search: ResumableSearch | None = None

    def resume(self, out: Path, journal: Journal) -> None:
        """Take over the state and the history that a run folder holds, if there are any.

        :param journal: the history in the folder.
        """
        self._search = ResumableSearch(
            self.workflow,
            out,
            describe=lambda step: describe_step(self.algorithm, step),
            journal=journal,
        )
        self.records = self._search.records
        self._forget_examples(self.records)

    @property
    def position(self) -> int:
        """How many of the records belong to what the search has evaluated until now."""
        assert self._search is not None, "a search is resumed before its records are counted"
        return self._search.problem.position

    def run(self, settings: RunSettings, on_progress: OnProgress) -> None:
        """Make all steps that are left.

        :param settings: of the run, which say when a search gains too little.
        :param on_progress: called after every evaluation.
        """
        search = self._search
        assert search is not None, "a search is resumed before it runs"
        counter = ProgressCounter(
            self.limit.budget,
            self.records,
            self.position,
            on_progress,
            search.seconds,
            on_minibatches=self.limit.minibatches > 1,
        )
        self._counter = counter
        while not search.steps or self.limit.has_room(counter.done, counter.seconds_used):
            done = searched(self.records[: self.position])
            self.stopped = has_converged(settings, self.workflow.algorithm, self.problem, done)
            if self.stopped:
                break
            search.run(search.steps + 1)

    def report(self, evaluations: Sequence[Any]) -> None:
        """Tell how far the search is, after evaluations that are on disk."""
        assert self._counter is not None, "a search runs before it reports"
        last = self.position
        first = last - len(evaluations)
        self._forget_examples(self.records[first:last])
        self._counter.report(self.records[first:last], first)

    def _forget_examples(self, records: Sequence[dict]) -> None:
        """Keep the standard error of a score in place of the numbers by example.

        :param records: of evaluations that are on disk and in the cache of the problem.
        """
        for record in records:
            error = error_of_record(record, self.problem)
            if math.isfinite(error):
                record["error"] = error
        forget_examples(records)


def forget_examples(records: Sequence[dict]) -> None:
    """Drop what is by example, and gradients: the history and the cache have them.

    :param records: of evaluations that are on disk and in the cache of the problem.
    """
    for record in records:
        record.pop("examples", None)
        record.pop("margins", None)
        record.pop("gradient", None)
        record.pop("places", None)
