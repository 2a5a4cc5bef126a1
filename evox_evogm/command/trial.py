"""A trial before the search: a LoRA trained on the dev examples against merges of the experts.

Both sides see four fifths of the dev examples, and are scored on the last fifth. It says on which
side of the border a user is: with few examples merging is ahead, with many training.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from evox_evogm.command.run_folder import damaged, read_table
from evox_evogm.command.scores import ByExample, ScoreRow
from evox_evogm.command.significance import as_table, mean
from evox_evogm.command.tasks import RunTasks
from evox_evogm.command.trial_comparison import compare_chosen
from evox_evogm.command.trial_merges import Parts, pool, score_merges
from evox_evogm.command.trial_settings import TrialSettings
from evox_evogm.command.uncertainty import standard_error_of_mean, standard_errors
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.tasks.task import Task
from evox_evogm.problems.trained_lora import (
    Training,
    check_trainable,
    cost_of_training,
    fresh_adapter,
    hold_back,
    is_trainable,
    merged_adapter,
    scores_by_example,
    train,
)
from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.journal import to_json

TRIAL = "trial.json"
ROW_NAME = "LoRA on dev"
ADAPTER = "lora_on_dev"
FEWEST = 10  # dev examples


def split_examples(problem: LoRAMergeProblem) -> Parts:
    """Hold back every fifth dev example.

    :param problem: whose dev tasks `check_trial` has not refused.
    """
    return Parts(*hold_back(problem.tasks))


def check_trial(tasks: Sequence[Task]) -> None:
    """Refuse a trial that these dev tasks do not allow.

    :raises ValueError: if there are fewer than ten examples, or no right answers to learn.
    """
    examples = sum(len(task.examples) for task in tasks)
    if examples < FEWEST:
        expected = f"expected at least {FEWEST} dev examples, of which a fifth is held back"
        raise ValueError(f"trial: {expected}, found {examples}")
    try:
        check_trainable(tasks)
    except ValueError as error:
        raise ValueError(f"trial: {error}") from error


def checkpoints(epochs: int) -> list[int]:
    """The epochs after which an adapter is scored: each third of them."""
    return sorted({-(-epochs * third // 3) for third in (1, 2, 3)})


def cost_of_trial(problem: LoRAMergeProblem, settings: TrialSettings) -> float:
    """What a trial costs, in full evaluations of the dev examples.

    A gradient counts as in a search. There are trainings, one short search, and scores: of the
    experts on what is learnt from, and of all on what is held back.
    """
    parts = split_examples(problem)
    runs = len(settings.rates)
    training = (runs + 1) * cost_of_training(settings.epochs, parts.share)
    scores = runs * len(checkpoints(settings.epochs)) + 4
    return training + problem.n_given * parts.share + scores * (1 - parts.share)


def run_trial(problem: LoRAMergeProblem, settings: TrialSettings, seed: int) -> dict:
    """Train, merge, and compare.

    :param problem: of the search; one of its tasks has right answers to learn.
    :param settings: of the trial.
    :param seed: of fresh adapters, the order of examples, and the short search.
    :return: what `trial.json` holds.
    """
    started = time.perf_counter()
    parts = split_examples(problem)
    merges, gradient_merge = score_merges(problem, parts, settings.epochs, seed)
    start = None
    if settings.start == "merge":
        start = problem.start if gradient_merge is None else gradient_merge
    rival = max(merges, key=lambda name: mean_of(merges[name]))
    print(
        f"    best of {len(merges)} merges: {mean_of(merges[rival]):.3f} ({sanitize(rival)})",
        flush=True,
    )
    tried = try_rates(problem, parts, settings, start, seed)
    best = max(tried, key=lambda found: mean_of(found.scores))  # of equals the first
    rows = [describe(name, scores) for name, scores in merges.items()]
    rows.append(describe("trained LoRA", best.scores))
    found = compare_chosen(
        [examples_of(one.scores) for one in tried], list(map(examples_of, merges.values()))
    )
    kept, held_back = parts.sizes
    return {
        "examples": {"learnt from": kept, "held back": held_back},
        "not trained on": [task.name for task in problem.tasks if not is_trainable(task)],
        "start": settings.start,
        "tried": [found.as_table() for found in tried],
        "chosen": best.as_table(),
        "scores": rows,
        "best_merge": rival,
        "compared": {
            "trained LoRA": found.trained,
            "merge": found.merge,
            "adapters": len(tried),
            "merges": len(merges),
        },
        "difference": as_table(found.difference),
        "evaluations": round(cost_of_trial(problem, settings), 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


class Tried(NamedTuple):
    """An adapter after some epochs, and its scores by example on what is held back."""

    lr: float
    epoch: int
    scores: ByExample

    def as_table(self) -> dict:
        """What `trial.json` says of it."""
        return {"lr": self.lr, "epoch": self.epoch, "score": mean_of(self.scores)}


def try_rates(
    problem: LoRAMergeProblem,
    parts: Parts,
    settings: TrialSettings,
    start: torch.Tensor | None,
    seed: int,
) -> list[Tried]:
    """Train an adapter at each rate, and score it after each third of the epochs; print each score.

    :param start: the `(n g,)` coefficients of a merge; None for fresh adapters.
    """
    tried = []
    for lr in settings.rates:
        training = Training(lr, settings.epochs, seed)
        with trainable(problem, start, training):
            for epoch in train(reading_texts(problem.language_model), parts.kept, training):
                if epoch in checkpoints(settings.epochs):
                    scores = scores_by_example(
                        reading_texts(problem.language_model), parts.held_back
                    )
                    tried.append(Tried(lr, epoch, pool(scores)))
                    shown = f"rate {lr:g}, epoch {epoch} of {settings.epochs}"
                    print(f"    LoRA, {shown}: {mean_of(tried[-1].scores):.3f}", flush=True)
    return tried


def describe(name: str, scores: ByExample) -> dict:
    """A row of the trial: the mean score on what is held back, and its standard error."""
    error = standard_error_of_mean(standard_errors(scores))
    return {"name": name, "score": mean_of(scores), "se": error}


def examples_of(scores: ByExample) -> list[float]:
    """The pooled scores of all examples that are held back."""
    (pooled,) = scores.values()
    return list(pooled)


def mean_of(scores: ByExample) -> float:
    """The mean over all examples that are held back."""
    return mean({name: sum(values) / len(values) for name, values in scores.items()})


def trainable(
    problem: LoRAMergeProblem, start: torch.Tensor | None, training: Training
) -> AbstractContextManager:
    """A context in which the base has an adapter that learns.

    :param start: the `(n g,)` coefficients of a merge; None for a fresh adapter.
    """
    if start is None or not bool(start.any()):
        return fresh_adapter(reading_texts(problem.language_model), training)
    return merged_adapter(problem, start)


def score_trained(
    problem: LoRAMergeProblem,
    tasks: RunTasks,
    trial: Mapping,
    settings: TrialSettings,
    merge: torch.Tensor,
    seed: int,
    out: Path,
) -> ScoreRow:
    """Train one LoRA on all dev examples as the trial chose to, save it, and score it.

    What goes wrong stands in its row.

    :param trial: what `trial.json` holds.
    :param merge: `(n g,)` coefficients from which training starts, if the settings say so.
    :param out: the run folder.
    """
    nothing = {task.name: float("nan") for task in tasks.dev}
    if "chosen" not in trial:
        return ScoreRow(ROW_NAME, "trained", nothing, nothing, trial["failure"])
    chosen = trial["chosen"]
    training = Training(chosen["lr"], settings.epochs, seed)
    start = merge if settings.start == "merge" else None
    examples: dict[str, dict] = {}
    try:
        with trainable(problem, start, training) as adapted:
            for epoch in train(reading_texts(problem.language_model), problem.tasks, training):
                if epoch == chosen["epoch"]:
                    break
            adapted.save_pretrained(out / ADAPTER)
            examples["dev"] = scores_by_example(
                reading_texts(problem.language_model), problem.tasks
            )
            examples["test"] = scores_by_example(reading_texts(problem.language_model), tasks.test)
    except Exception as error:  # the run has its result all the same
        failure = f"{type(error).__name__}: {sanitize(str(error))}"
        return ScoreRow(ROW_NAME, "trained", nothing, nothing, failure)
    means = {}
    for split, scores in examples.items():
        means[split] = {name: sum(values) / len(values) for name, values in scores.items()}
    return ScoreRow(ROW_NAME, "trained", means["dev"], means["test"], None, examples)


def saved_trial(out: Path) -> dict | None:
    """What `trial.json` of a run holds, or None if there is none yet.

    :raises ValueError: if it is damaged.
    """
    if not (out / TRIAL).is_file():
        return None
    trial = read_table(out / TRIAL, json.loads)
    if "difference" not in trial and "failure" not in trial:
        raise ValueError(damaged(out / TRIAL, "no comparison in it"))
    return trial


@contextmanager
def without_repeated_warnings() -> Iterator[None]:
    """Inside the block nothing is told of examples: all was told when they were read."""
    log = logging.getLogger("evox_evogm.problems.tasks")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def make_trial(problem: LoRAMergeProblem, settings: TrialSettings, seed: int, out: Path) -> dict:
    """Run a trial and write `trial.json`; what goes wrong stands in it.

    :return: what `trial.json` holds.
    """
    try:
        with without_repeated_warnings():
            trial = to_json(run_trial(problem, settings, seed))
    except (RuntimeError, ValueError, MemoryError, ArithmeticError, OSError) as error:
        trial = {"failure": f"{type(error).__name__}: {sanitize(str(error))}"}
    atomic_write(out / TRIAL, (json.dumps(trial, indent=2) + "\n").encode())
    return trial
