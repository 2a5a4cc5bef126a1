"""What a report is made of: the files of a finished run, and the rows of its table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import yaml

from evox_evogm.command.best_expert import best_places, level_with
from evox_evogm.command.experts import count_given
from evox_evogm.command.glossary import WITHOUT_BOX
from evox_evogm.command.report_data import REPORT_DATA
from evox_evogm.command.result import read_result
from evox_evogm.command.run_folder import CONFIG, damaged, read_table
from evox_evogm.command.scores import label
from evox_evogm.command.task_settings import SPLITS
from evox_evogm.command.uncertainty import standard_error, standard_error_of_mean
from evox_evogm.problems.box import box_of
from evox_evogm.problems.evaluation import cost_of
from evox_evogm.resume.journal import read_blocks
from evox_evogm.resume.resumable_search import JOURNAL

ZERO_OR_ONE = ("choice_likelihood", "exact_match", "multiple_choice_generation")  # metrics


@dataclass(frozen=True)
class Score:
    """A mean score and its standard error; NaN where one is unknown."""

    value: float
    error: float


@dataclass(frozen=True)
class Row:
    """A model in the table.

    :param name: as a reader sees it.
    :param kind: base, expert, average, RegMean, merge or another.
    :param scores: by split and task; the mean over tasks under the empty name.
    :param failure: why it has none, or None.
    """

    name: str
    kind: str
    scores: Mapping[str, Mapping[str, Score]]
    failure: str | None

    def mean(self, split: str) -> Score:
        """The mean over tasks."""
        return self.scores[split][""]


@dataclass(frozen=True)
class RunData:
    """A finished run.

    :param result: what `result.json` holds.
    :param records: the history.
    :param settings: what `config.yaml` holds.
    :param data: what `report_data.json` holds.
    """

    result: dict
    records: Sequence[dict]
    settings: dict
    data: dict

    @property
    def experts(self) -> list[str]:
        """The names of the experts, as they are."""
        return list(self.result["coefficients"])

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, as they are."""
        return list(self.result["scores"][0]["dev"])

    @property
    def n_groups(self) -> int:
        """g."""
        by_group = self.result["coefficients_by_group"]
        return len(next(iter(by_group.values()))) if by_group else 1

    @cached_property
    def best(self) -> torch.Tensor:
        """`(n, g)` effective coefficients of the merge, in float64; 0 where none is used."""
        return self._table.nan_to_num()

    @cached_property
    def used(self) -> torch.Tensor:
        """`(n, g)`, whether an expert has anything in a group."""
        return ~self._table.isnan()

    @cached_property
    def _table(self) -> torch.Tensor:
        """`(n, g)` effective coefficients of the merge, in float64; NaN where none is used."""
        by_group = self.result["coefficients_by_group"]
        if by_group:
            rows = [list(row.values()) for row in by_group.values()]
        else:
            rows = [[value] for value in self.result["coefficients"].values()]
        known = [[math.nan if value is None else value for value in row] for row in rows]
        return torch.tensor(known, dtype=torch.float64)

    @cached_property
    def points(self) -> torch.Tensor:
        """`(N, n g)` coefficients of all evaluations, in float64; 0 where none is used."""
        rows = [record["coefficients"] for record in self.records]
        points = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1)
        return points * self.used.flatten() if len(rows) else points

    @cached_property
    def observed(self) -> torch.Tensor:
        """`(N,)` scores on all dev examples; NaN of evaluations that have none."""
        scores = []
        for record in self.records:
            known = record["score"] is not None and "estimate" not in record
            scores.append(record["score"] if known else math.nan)
        return torch.tensor(scores, dtype=torch.float64)

    @cached_property
    def costs(self) -> torch.Tensor:
        """`(N,)` what each evaluation cost, in full evaluations."""
        return torch.tensor([cost_of(record) for record in self.records], dtype=torch.float64)

    @cached_property
    def box(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`lb` and `ub` by expert, two `(n,)` tensors; None if the search has no box."""
        if self.result["algorithm"] in WITHOUT_BOX:
            return None
        if "box" in self.data:
            box = self.data["box"]
            return torch.tensor(box["lower"]).double(), torch.tensor(box["upper"]).double()
        kept = count_given(self.result) if self.result["keep_experts"] else 0
        lower, upper = box_of(len(self.experts), regressed=bool(self.result["regmean"]), kept=kept)
        return lower.double(), upper.double()

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the table."""
        return [self._row(row) for row in self.result["scores"]]

    @property
    def merge(self) -> Row:
        """The row of the merge, the last one."""
        return [row for row in self.rows if row.kind == "merge"][-1]

    @cached_property
    def best_experts(self) -> list[Row]:
        """The expert with the best mean dev score, and then those that are level with it."""
        experts = [row for row in self.rows if row.kind == "expert"]
        places = best_places([row.mean("dev").value for row in experts])
        return [experts[place] for place in places]

    @property
    def best_expert(self) -> Row | None:
        """The expert with the best mean dev score, known before any test score."""
        return self.best_experts[0] if self.best_experts else None

    @property
    def level_with_best(self) -> str:
        """What is said after the name of that expert, if others are level with it."""
        return level_with([row.name for row in self.best_experts[1:]])

    def row_of(self, kind: str) -> Row | None:
        """The first row of a kind."""
        return next((row for row in self.rows if row.kind == kind), None)

    def _row(self, row: dict) -> Row:
        scores: dict[str, dict[str, Score]] = {}
        for split in SPLITS:
            by_task = {}
            for task, value in row[split].items():
                by_task[task] = Score(value, self._error(row, split, task))
            mean = sum(score.value for score in by_task.values()) / len(by_task)
            errors = {task: score.error for task, score in by_task.items()}
            by_task[""] = Score(mean, standard_error_of_mean(errors))
            scores[split] = by_task
        name = label(row["kind"], row["name"])
        return Row(name, row["kind"], scores, row.get("failure"))

    def _error(self, row: dict, split: str, task: str) -> float:
        """The standard error of a score.

        Runs of earlier versions have none. They have the dev scores of merges by example. Of a
        metric that is 0 or 1 the mean says how the examples differ.
        """
        known = row.get("errors", {}).get(split, {}).get(task)
        if known is not None and math.isfinite(float(known)) and float(known) > 0:
            return float(known)
        described = self.result["tasks"].get(task, {})
        examples, value = described.get(split, 0), row[split][task]
        if described.get("metric") in ZERO_OR_ONE and examples > 1 and 0 <= value <= 1:
            spread = math.sqrt(value * (1 - value) / (examples - 1))
            return spread or standard_error([value] * examples)
        if split == "dev" and row["kind"] == "merge":
            return self._error_in_history(task, row["dev"])
        return math.nan

    def _error_in_history(self, task: str, scores: Mapping[str, float]) -> float:
        for record in self.records:
            if record["tasks"] == scores and task in record.get("examples", {}):
                return standard_error([float(score) for score in record["examples"][task]])
        return math.nan


def read_run(out: Path) -> RunData:
    """A finished run, from its folder.

    :param out: the run folder.
    :raises ValueError: if a file is missing or damaged.
    """
    result = read_result(out)
    journal = out / JOURNAL
    if not journal.is_file():
        raise ValueError(f"out: expected {journal} beside {CONFIG}, found none")
    try:
        records: list[dict] = []
        for block in read_blocks(journal):
            records += block.records
    except ValueError as error:
        raise ValueError(damaged(journal, error)) from error
    data: dict = {}
    if (out / REPORT_DATA).is_file():
        data = read_table(out / REPORT_DATA, json.loads)
    return RunData(result, records, read_table(out / CONFIG, yaml.safe_load), data)
