"""The exported adapter, scored again by the LM Evaluation Harness itself."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from evox_evogm.command.scores import ScoreRow
from evox_evogm.command.tasks import RunTasks
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.adapters.export import loaded_by_peft
from evox_evogm.problems.checkpoints.full_checkpoint import has_checkpoints
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.one_merge import as_one_merge
from evox_evogm.problems.tasks.harness.hflm import score_by_hflm
from evox_evogm.problems.tasks.harness.task import HarnessTask

ROUNDING = 1e-4  # relative difference in float32
COARSE_ROUNDING = 0.02  # in half precision
TIPPED = 2  # examples whose answers may tip in half precision


def check_by_harness(
    problem: LoRAMergeProblem,
    tasks: RunTasks,
    rows: Sequence[ScoreRow],
    adapter: Mapping | None,
    out: Path,
    best: torch.Tensor,
) -> list[dict]:
    """Score the exported adapter on the tasks of the harness by its own HFLM.

    What goes wrong here stands in the result and does not end the run.

    :param rows: of the final table.
    :param adapter: what `result.json` says of the adapter; None if the merge is the base, or is
        scored in the base's weights because experts are whole models.
    :param out: the run folder.
    :param best: `(n g,)` effective coefficients.
    :return: for each harness task and split the score of the run, that of the harness, whether they
        agree up to rounding, and as `error` why there is none (None if there is one).
    """
    merge = next(row for row in reversed(rows) if row.kind == "merge")
    folder = None if adapter is None else out / adapter["folder"]
    dtypes = {str(problem.language_model.model.dtype).removeprefix("torch.")}
    dtypes.add("float32" if adapter is None else adapter.get("dtype", "float32"))
    is_exact = dtypes <= {"float32", "float64"}
    checked = []
    for split, task in tasks.by_split():
        if not isinstance(task, HarnessTask):
            continue
        scores = merge.dev if split == "dev" else merge.test
        run, found, failure = scores[task.name], math.nan, None
        try:
            found = _score(problem, task, folder, best)
        except Exception as error:  # of lm-eval, of peft, or of memory
            failure = f"{type(error).__name__}: {sanitize(str(error))}"
        entry = {
            "task": task.name,
            "split": split,
            "metric": task.metric,
            "run": run,
            "lm_eval": found,
            "agrees": _agree(run, found, None if is_exact else len(task.examples)),
            "error": failure,
        }
        checked.append(entry)
    return checked


def _score(
    problem: LoRAMergeProblem, task: HarnessTask, folder: Path | None, best: torch.Tensor
) -> float:
    """The score of the adapter in a folder, of the base, or of a merge in its weights."""
    model = reading_texts(problem.language_model)
    arguments = model.prompts.chat_template.rendering
    if has_checkpoints(problem.experts):
        with as_one_merge(problem.scorer, best):
            return score_by_hflm(task, model.model, model.tokenizer, arguments)
    if folder is None:
        return score_by_hflm(task, model.model, model.tokenizer, arguments)
    with loaded_by_peft(model.model, folder):
        return score_by_hflm(task, model.model, model.tokenizer, arguments)


def _agree(run: float, lm_eval: float, examples: int | None) -> bool:
    """Whether two scores differ by no more than rounding does.

    :param examples: how many there are, where base or adapter are in half precision; else None.
    """
    if examples is None:
        return math.isclose(run, lm_eval, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return abs(run - lm_eval) <= COARSE_ROUNDING * abs(lm_eval) + TIPPED / examples


def notes_of_harness(checked: Sequence[dict]) -> list[str]:
    """A note for every score of the harness that is missing, or is not that of the run.

    :param checked: what `check_by_harness` returned.
    """
    notes = []
    for entry in checked:
        where = f"task {sanitize(entry['task'])!r} ({entry['split']})"
        if entry["error"]:
            notes.append(f"{where}: the harness could not score the adapter: {entry['error']}")
        elif not entry["agrees"]:
            found = f"the run has {entry['run']:.4f}, the harness {entry['lm_eval']:.4f}"
            notes.append(f"{where}: expected one score of the merge by both, {found}")
    return notes
