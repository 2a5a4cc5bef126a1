"""`--confirm k`: the best k merges are scored on further dev examples before one is chosen.

The best score of many merges on few examples is in part luck. What was lucky on the dev examples is
not lucky again on others. So the choice is by the mean over both, example by example.

Scores are written to `confirm.jsonl` before they count: no merge is scored twice on them.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evox_evogm.command.number_format import with_error
from evox_evogm.command.objective_errors import objective_error
from evox_evogm.command.run_inputs import task_content
from evox_evogm.command.scores import ByExample, known_examples, score_models
from evox_evogm.command.uncertainty import standard_errors
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.scalarization import Objective
from evox_evogm.problems.tasks.task import Task
from evox_evogm.resume.journal import Journal, from_json, to_json

if TYPE_CHECKING:
    from evox_evogm.command.merge_run import MergeRun

SCORES = "confirm.jsonl"  # in the run folder
SAMPLES = ("first", "further", "pooled")  # of dev examples


@dataclass(frozen=True)
class Confirmed:
    """A merge with its scores on both samples of dev examples.

    :param point: `(n g,)` effective coefficients.
    :param first: by task the scores of the examples that the search saw.
    :param further: by task those of further examples; not of all tasks.
    :param recommended: whether it is the merge that the search recommends.
    """

    point: torch.Tensor
    first: ByExample
    further: ByExample
    recommended: bool = False

    @property
    def pooled(self) -> dict[str, list[float]]:
        """By task the scores of all examples of both samples."""
        both = {}
        for name, scores in self.first.items():
            both[name] = [*scores, *self.further.get(name, ())]
        return both

    def score(self, objective: Objective, sample: str) -> tuple[float, float]:
        """What an objective makes of a sample, and its standard error.

        :param sample: one of `SAMPLES`. Of further examples it is about the tasks that have them.
        """
        scores = getattr(self, sample)
        means = {name: sum(values) / len(values) for name, values in scores.items()}
        return objective.value(means), objective_error(objective, means, standard_errors(scores))

    def rank(self, objective: Objective) -> float:
        """By how much it is better than others, by all examples; constraints count."""
        pooled = self.pooled
        return objective.score({name: sum(v) / len(v) for name, v in pooled.items()})


def cost_of_confirmation(further: Sequence[Task], dev: Sequence[Task], count: int) -> float:
    """What scoring merges on further examples takes, in evaluations.

    :param further: the tasks with further examples.
    :param dev: those of the search.
    :param count: of merges.
    """
    examples = sum(len(task.examples) for task in dev)
    return count * sum(len(task.examples) for task in further) / examples


def confirm(run: "MergeRun", points: torch.Tensor, further: Sequence[Task]) -> dict[str, Any]:
    """Score the best merges on further dev examples, and choose one.

    :param run: whose search is over.
    :param points: a `(k, n g)` tensor of coefficients, the recommended merge first.
    :param further: the tasks with further dev examples.
    :return: what `result.json` says under `confirm`.
    """
    problem, settings = run.problem, run.settings
    scored = score_on(problem, points, further, run.out)
    candidates = []
    for place, point in enumerate(points):
        first, found = known_examples(problem, point), scored.get(tuple(point.tolist()))
        if first and found:
            candidates.append(Confirmed(point, first, found, recommended=place == 0))
    if not candidates:
        raise RuntimeError("confirm: expected scores on further dev examples, found none")
    chosen = choose(candidates, problem.objective)
    return {
        "k": settings.confirm,
        "examples": {task.name: len(task.examples) for task in further},
        "examples_wanted": settings.confirm_examples,
        "cost": round(cost_of_confirmation(further, problem.tasks, len(candidates)), 2),
        "chosen": chosen,
        "candidates": [describe(candidate, problem.objective) for candidate in candidates],
    }


def choose(candidates: Sequence[Confirmed], objective: Objective) -> int:
    """The place of the merge that is best over all examples; of equals the first.

    :param candidates: the recommended merge first, if it did not fail.
    """
    ranks = [candidate.rank(objective) for candidate in candidates]
    return ranks.index(max(ranks))


def describe(candidate: Confirmed, objective: Objective) -> dict[str, Any]:
    """What `result.json` says of a merge that was scored again."""
    table: dict[str, Any] = {"point": candidate.point.tolist()}
    table["recommended"] = candidate.recommended
    for sample in SAMPLES:
        scores = getattr(candidate, sample)
        score, error = candidate.score(objective, sample)
        table[sample] = {
            "score": score,
            "error": error,
            "tasks": {name: sum(values) / len(values) for name, values in scores.items()},
            "errors": standard_errors(scores),
        }
    return table


def score_on(
    problem: LoRAMergeProblem,
    points: torch.Tensor,
    further: Sequence[Task],
    out: Path,
    file: str = SCORES,
) -> dict[tuple[float, ...], ByExample]:
    """The scores of merges on further examples; those that are written down are not made again.

    :param points: a `(k, n g)` tensor.
    :param further: the tasks with further examples.
    :param out: the run folder.
    :param file: in it, where scores are written down.
    :return: by point the scores by task and example; without merges that failed.
    """
    sha256 = digest_of(further)
    with Journal(out / file) as journal:
        known = _known(journal.records, sha256)
        unknown = [row for row, point in enumerate(points.tolist()) if tuple(point) not in known]
        for block in points[unknown].split(problem.candidates_at_once):
            if not len(block):
                continue
            start = time.perf_counter()
            found = [model for model in score_models(problem, block, further) if not model.failure]
            seconds = (time.perf_counter() - start) / len(block)
            records = []
            for model in found:
                record = {"coefficients": list(model.point), "sha256": sha256}
                examples = {name: list(values) for name, values in model.examples.items()}
                records.append(to_json({**record, "examples": examples, "seconds": seconds}))
            if records:
                journal.append(records)
            known |= _known(records, sha256)
    return known


def _known(records: Sequence[Mapping], sha256: str) -> dict[tuple[float, ...], ByExample]:
    """The scores that were written down, of the same examples, by point."""
    known: dict[tuple[float, ...], ByExample] = {}
    for record in records:
        if record["sha256"] == sha256:
            examples = {name: from_json(values) for name, values in record["examples"].items()}
            known[tuple(record["coefficients"])] = examples
    return known


def digest_of(further: Sequence[Task]) -> str:
    """A digest of tasks and their examples."""
    content = hashlib.sha256()
    for task in further:
        content.update(task_content(task))
    return content.hexdigest()[:16]


def is_confirmed(result: Mapping, settings: Any) -> bool:
    """Whether a result was chosen as settings want it.

    :param result: what `result.json` holds.
    :param settings: of the run.
    """
    found = result.get("confirm") or {}
    wanted = settings.confirm, settings.confirm_examples
    return (found.get("k"), found.get("examples_wanted")) == wanted


def remarks_on_confirm(found: Mapping[str, Any] | None) -> list[str]:
    """What came of scoring merges again, in sentences.

    :param found: what `result.json` holds under `confirm`.
    """
    if not found:
        return []
    candidates, place = found["candidates"], found["chosen"]
    best, count = candidates[place], sum(found["examples"].values())
    merges = f"the {len(candidates)} best merges were" if len(candidates) > 1 else "it was"
    remarks = [
        f"Before it was chosen, {merges} scored on {count} further dev examples, as much as "
        f"{found['cost']:.3g} evaluations more."
    ]
    words = f"{_shown(best['pooled'])} over first and further dev examples"
    if not is_recommended(candidates, 0):
        failed = "The recommended merge could not be scored on all of them"
        remarks.append(f"{failed}. The best other is taken: {words}.")
    elif len(candidates) > 1:
        if place == 0:
            other = max(candidates[1:], key=lambda candidate: candidate["pooled"]["score"])
            remarks.append(
                f"The recommended merge stays: {words}, the next best {_shown(other['pooled'])}."
            )
        else:
            remarks.append(
                f"Number {place + 1} of them is taken in place of the recommended one: {words}, "
                f"the recommended one {_shown(candidates[0]['pooled'])}."
            )
    remarks.append(
        f"On further dev examples it scores {_shown(best['further'])}, on those of the search "
        f"{_shown(best['first'])}."
    )
    return remarks


def is_recommended(candidates: Sequence[Mapping[str, Any]], place: int) -> bool:
    """Whether a merge that was scored again is the one that the search recommends.

    :param candidates: as in `result.json`; older ones do not say which one it is, and it is first.
    """
    return bool(candidates[place].get("recommended", place == 0))


def confirm_cells(found: Mapping[str, Any] | None) -> list[list[str]]:
    """A header and a line for each merge that was scored again; empty if there is one or none.

    :param found: what `result.json` holds under `confirm`.
    """
    if not found or len(found["candidates"]) < 2:
        return []
    cells = [["merge", "first dev", "further dev", "together", ""]]
    for place, candidate in enumerate(found["candidates"]):
        recommended = is_recommended(found["candidates"], place)
        name = "recommended" if recommended else f"number {place + 1}"
        scores = [_shown(candidate[sample]) for sample in SAMPLES]
        cells.append([name, *scores, "chosen" if place == found["chosen"] else ""])
    return cells


def _shown(score: Mapping[str, Any]) -> str:
    error = score["error"]
    return with_error(float(score["score"]), math.nan if error is None else float(error))
