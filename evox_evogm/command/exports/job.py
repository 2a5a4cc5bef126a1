"""A merge on its way out: what every kind of export needs, and how a loaded one is compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import torch

from evox_evogm.command.exports.exported import ExportFailed, Scores
from evox_evogm.command.licences import (
    LicenceReport,
    check_licences,
    licences_of,
    used_experts,
)
from evox_evogm.command.tasks import RunTasks
from evox_evogm.command.uncertainty import standard_error
from evox_evogm.problems.adapters.export import used_factors
from evox_evogm.problems.adapters.read_adapter import Factors
from evox_evogm.problems.adapters.same_base import name_in_export
from evox_evogm.problems.checkpoints.merged_checkpoints import MergedCheckpoints
from evox_evogm.problems.images.image_exports import first_images, plain_features
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.inference.base_model import ready_to_score
from evox_evogm.problems.inference.kinds_of_base import plain_logits
from evox_evogm.problems.inference.logit_differences import rounded_differently
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.one_merge import as_one_merge
from evox_evogm.problems.population_scorer import TEXTS
from evox_evogm.problems.tasks.metrics import score_task
from evox_evogm.problems.tasks.requests import Case, prompts_of
from evox_evogm.problems.tasks.task import Task

ROWS, TOKENS = 8, 64  # prompts whose logits are compared, and tokens of each
# Logits may differ by this many times what rounding in another order, and the error of the weights
# times what the merge changes, account for.
LEEWAY = 10


class Options(TypedDict, total=False):
    """What all kinds of exports take.

    - `tasks`: dev and test tasks that the loaded export is scored on; by default the problem's own.
    - `result`: what `result.json` holds, for the model card.
    - `base`: the name of the base in the export; see `name_in_export` for the default.
    - `settings_folder`: the folder that paths in the settings are relative to.
    - `strict_licences`: refuse to export where licences conflict or are unknown.
    - `replace`: whether what stands in the folder may go.
    """

    tasks: RunTasks | None
    result: dict | None
    base: str | None
    settings_folder: Path
    strict_licences: bool
    replace: bool


@dataclass(frozen=True)
class Comparison:
    """What a loaded export gives.

    :param logits_difference: from the merge, relative to it.
    :param scores: of what was loaded.
    """

    logits_difference: float
    scores: Scores


class Job:
    """A merge, and what it is compared by.

    :param problem: whose experts are merged.
    :param coefficients: an `(n g,)` tensor of effective coefficients, not all 0.
    :raises ValueError: if the coefficients are of another number or all 0, or licences conflict
        under `strict_licences`.
    """

    def __init__(
        self,
        problem: LoRAMergeProblem,
        coefficients: torch.Tensor,
        options: Options,
    ):
        self.problem = problem
        self.coefficients = check_coefficients(problem, coefficients)
        self.options = options
        self.settings_folder = Path(options.get("settings_folder", Path()))
        self.result = options.get("result")
        self.used = used_experts(problem, self.coefficients)
        self.licences: LicenceReport = licences_of(problem, self.used)
        check_licences(self.licences, strict=options.get("strict_licences", False))
        self.notes: list[str] = []

    @property
    def model(self):
        """The base, as transformers loaded it."""
        return self.problem.language_model.model

    @property
    def replace(self) -> bool:
        return self.options.get("replace", False)

    @property
    def loaded_by(self) -> str:
        """The name or path that the base was loaded by, empty if it has none."""
        return str(getattr(self.model.config, "_name_or_path", "") or "")

    @cached_property
    def base(self) -> str:
        """The name of the base in the export."""
        named = [expert.base for expert in self.problem.experts]
        wanted = self.options.get("base")
        return wanted or name_in_export(self.loaded_by, named, self.settings_folder)

    @cached_property
    def factors(self) -> dict[str, Factors]:
        """Of the merge by module, in float32 on the CPU, with scale 1."""
        return used_factors(self.problem.experts, self.coefficients, self.problem.groups)

    @cached_property
    def checkpoints(self) -> MergedCheckpoints | None:
        """What whole models make of the base's weights; None where there are none."""
        differences = self.problem.scorer.differences
        if differences is None:
            return None
        return MergedCheckpoints(differences, self.coefficients)

    @cached_property
    def splits(self) -> dict[str, Sequence[Task]]:
        """The tasks that exports are scored on, by split."""
        tasks = self.options.get("tasks")
        if tasks is None:
            return {"dev": self.problem.tasks}
        return {"dev": tasks.dev, "test": tasks.test}

    @cached_property
    def rows(self) -> list[torch.Tensor]:
        """`(1, C)` tokens of prompts, or images, taken from all dev tasks in turn."""
        model = self.problem.language_model
        if isinstance(model, ImageModel):
            return first_images(self.splits["dev"], ROWS)
        rows: list[torch.Tensor] = []
        longest = max(len(task.examples) for task in self.splits["dev"])
        for place in range(longest):
            for task in self.splits["dev"]:
                if place < len(task.examples) and len(rows) < ROWS:
                    # A function has none.
                    for tokens in prompts_of(task, model, [Case(0, task.examples[place])]):
                        rows.append(torch.tensor([tokens[:TOKENS]]))
        if not rows:
            rows = [torch.tensor([reading_texts(model).prompt_tokens(text)]) for text in TEXTS]
        return rows

    @cached_property
    def merge_logits(self) -> list[torch.Tensor]:
        """Of the merge, a `(C, V)` tensor for each row."""
        with as_one_merge(self.problem.scorer, self.coefficients) as merge:
            return self._logits(merge.model)

    @cached_property
    def base_logits(self) -> list[torch.Tensor]:
        """Of the base, a `(C, V)` tensor for each row."""
        with ready_to_score(self.model):
            return self._logits(self.model)

    @cached_property
    def effect(self) -> float:
        """By how much the logits of the base differ from those of the merge, relative to these."""
        return relative_difference(self.base_logits, self.merge_logits)

    @cached_property
    def own_noise(self) -> float:
        """By how much rounding alone moves logits in the dtype of the base, relative to them."""
        with ready_to_score(self.model), rounded_differently(self.model):
            return relative_difference(self._logits(self.model), self.base_logits)

    @cached_property
    def merge_scores(self) -> Scores:
        """Of the merge: those in the result if it has them, else they are made now."""
        known = self._scores_in_result()
        if known is not None:
            return known
        by_split = {}
        for split, tasks in self.splits.items():
            by_split[split] = self.problem.score_tasks(self.coefficients, tasks)
        return summarise(by_split)

    def _scores_in_result(self) -> Scores | None:
        rows = (self.result or {}).get("scores") or []
        if not rows or rows[-1]["kind"] != "merge":
            return None
        row = rows[-1]
        for split, tasks in self.splits.items():
            if set(row.get(split, {})) != {task.name for task in tasks}:
                return None
        errors = row.get("errors") or {}
        means = {split: dict(row[split]) for split in self.splits}
        return Scores(means, {split: dict(errors.get(split, {})) for split in self.splits})

    @torch.no_grad()
    def _logits(self, model) -> list[torch.Tensor]:
        of_images = isinstance(self.problem.language_model, ImageModel)
        output = plain_features if of_images else plain_logits
        found = []
        for row in self.rows:
            found.append(output(model, row).to("cpu", torch.float32))
        return found

    def compare(self, loaded: ScoredModel, error: float) -> Comparison:
        """Compare a loaded export with the merge in logits, and score it.

        :param loaded: the export, as the library that reads it loaded it.
        :param error: of its weights, relative to what the merge adds to the base.
        :raises ExportFailed: if its logits differ by more than rounding and the error account for.
        """
        with ready_to_score(loaded.model):
            found = self._logits(loaded.model)
            with rounded_differently(loaded.model):
                noise = relative_difference(self._logits(loaded.model), found)
            apart = relative_difference(found, self.merge_logits)
            allowed = LEEWAY * (max(noise, self.own_noise) + error * self.effect) + 1e-5
            if not apart <= allowed:  # nor NaN
                raise ExportFailed(
                    f"export: expected the logits of the merge within {allowed:.1e}, "
                    f"found a difference of {apart:.1e} (relative)"
                )
            by_split = {}
            for split, tasks in self.splits.items():
                by_split[split] = {task.name: score_task(task, loaded) for task in tasks}
        return Comparison(apart, summarise(by_split))

    def prepare(self) -> None:
        """Make what an export is compared with, while the base is still as it was."""
        for made in ("merge_logits", "effect", "own_noise", "merge_scores"):
            getattr(self, made)


def check_coefficients(problem: LoRAMergeProblem, coefficients: torch.Tensor) -> torch.Tensor:
    """The coefficients of a merge in float32 on the CPU.

    :raises ValueError: if they are of another number, not finite, or all 0.
    """
    coefficients = torch.as_tensor(coefficients).detach().to("cpu", torch.float32)
    if tuple(coefficients.shape) != (problem.n_coefficients,):
        raise ValueError(
            f"coefficients: expected {problem.n_coefficients}, found {tuple(coefficients.shape)}"
        )
    if not coefficients.isfinite().all():
        raise ValueError("coefficients: expected finite numbers, found others")
    if not coefficients.any():
        raise ValueError(
            "coefficients: expected at least one other than 0, found all 0; "
            "the merge is the base model itself"
        )
    return coefficients


def relative_difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """How far logits are apart, relative to the expected ones without their mean.

    Tokens that the model excludes are left out.

    :param found: a `(C, V)` tensor for each row.
    :param expected: the same.
    """
    apart, size = 0.0, 0.0
    for one, other in zip(found, expected, strict=True):
        where = other.isfinite() & (other.abs() < 1e4)
        kept = torch.where(where, other, 0.0)
        centred = torch.where(where, kept - kept.sum(-1, keepdim=True) / where.sum(-1, True), 0.0)
        difference = torch.where(where, one - other, 0.0).nan_to_num(math.inf)
        apart += float(difference.square().sum())
        size += float(centred.square().sum())
    return math.sqrt(apart / size) if size else math.sqrt(apart)


def summarise(by_split: dict[str, dict[str, torch.Tensor]]) -> Scores:
    """The means and their standard errors.

    :param by_split: by split and task `(S,)` scores of the examples.
    """
    means: dict[str, dict[str, float]] = {}
    errors: dict[str, dict[str, float]] = {}
    for split, by_task in by_split.items():
        means[split] = {name: float(scores.mean()) for name, scores in by_task.items()}
        errors[split] = {name: standard_error(scores.tolist()) for name, scores in by_task.items()}
    return Scores(means, errors)
