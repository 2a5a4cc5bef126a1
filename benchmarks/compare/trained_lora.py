"""What has a LoRA that was trained on the dev questions? A row beside the searches.

It needs no experts. The training is plain peft's: a fresh adapter on all linear layers, AdamW, and
the loss of the right answers with their ends, as the experts of the suite were trained.

- An epoch is a forward and a backward pass over all dev questions, and counts as 3 evaluations. The
  score on dev counts as one: with 160 evaluations there are 53 epochs.
- The learning rate is the one of `RATES` with the best score on a held-back fifth of dev, trained
  on the other questions for as many epochs. These trials come on top of the budget. The result says
  what they took, and the evaluations of the result are those of trials and training.
- Then an adapter is trained on all dev questions, and scored on dev and test as merges are.
- On a language model a training takes minutes. What a trial has found is written at once, and a run
  that was interrupted goes on from there.
"""

import csv
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.compare.cases import Case
from benchmarks.static_merges.dense import mean_scores
from benchmarks.static_merges.settings import mean
from benchmarks.suites.answer_loss import answer_loss
from benchmarks.suites.train_experts import draw_batches
from evox_evogm.problems import Task
from evox_evogm.problems.evaluation import GRADIENT_COST
from evox_evogm.problems.inference.language_model import LanguageModel, Request
from evox_evogm.problems.tasks.requests import requests_of
from evox_evogm.problems.trained_lora import PARTS, hold_back
from evox_evogm.resume.atomic_write import atomic_write

RANK, ALPHA = 8, 16
BATCH = 16  # questions a step
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
RISE = 0.1  # the part of the steps in which the learning rate rises; then it falls to 0


def epochs_of(budget: int) -> int:
    """The epochs that a budget allows, besides one score on dev.

    :param budget: full evaluations, at least 4.
    :raises ValueError: if the budget is too small for an epoch.
    """
    epochs = int((budget - 1) // GRADIENT_COST)
    if epochs < 1:
        raise ValueError(f"budget: expected at least {GRADIENT_COST + 1:g}, found {budget}")
    return epochs


def train(
    model: torch.nn.Module, requests: list[Request], *, epochs: int, lr: float, seed: int
) -> None:
    """Train the weights of a model that have gradients.

    :param model: a transformers causal LM with an adapter of peft's around it.
    :param requests: tokens of questions and of their answers.
    :param epochs: passes over all of them.
    :param lr: the highest learning rate.
    :param seed: of the order of the questions.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.01)
    generator = random.Random(seed)
    batches = []
    for _ in range(epochs):
        batches += draw_batches(requests, BATCH, generator)
    rise, steps = RISE * len(batches), len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (rise + 1), 1 - step / steps)
    )
    for batch in batches:
        loss = answer_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()


@contextmanager
def trained_adapter(
    base: LanguageModel, tasks: Sequence[Task], *, epochs: int, lr: float, seed: int
) -> Iterator[None]:
    """Inside the block the base has a LoRA that was trained on some tasks.

    :param base: whose model gets the adapter.
    :param tasks: to train on.
    :param epochs: passes over all questions.
    :param lr: the highest learning rate.
    :param seed: of the fresh adapter and the order of the questions.
    """
    from peft import LoraConfig, get_peft_model

    requests = []
    for task in tasks:
        requests += requests_of(task, base)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(base.model, config)
    try:
        train(wrapped, requests, epochs=epochs, lr=lr, seed=seed)
        wrapped.eval()
        yield
    finally:
        wrapped.unload()


def try_rates(
    base: LanguageModel,
    dev: Sequence[Task],
    rates: Sequence[float],
    *,
    epochs: int,
    seed: int,
    path: Path,
) -> tuple[dict[str, float], float]:
    """Score learning rates on the held-back part of dev, each trained on the rest.

    :param base: the base model.
    :param dev: the dev tasks.
    :param rates: learning rates.
    :param epochs: passes over the questions that are not held back.
    :param seed: of the trainings.
    :param path: of a file with what has been found; rates that are in it are not tried again.
    :return: the score by learning rate, written as a text, and the seconds of all trials.
    """
    kept, held_back = hold_back(dev)
    tried = json.loads(path.read_text()) if path.exists() else {}
    names = [f"{lr:g}" for lr in rates]
    for name, lr in zip(names, rates, strict=True):
        if name in tried:
            continue
        start = time.perf_counter()
        with trained_adapter(base, kept, epochs=epochs, lr=lr, seed=seed):
            # Rounded, so that equal scores are equal.
            score = round(mean(mean_scores(base, held_back)), 6)
        tried[name] = {"score": score, "seconds": time.perf_counter() - start}
        atomic_write(path, json.dumps(tried).encode())
    scores = {name: tried[name]["score"] for name in names}
    return scores, sum(tried[name]["seconds"] for name in names)


def run_training(
    case: Case, path: Path, base: LanguageModel, dev: Sequence[Task], test: Sequence[Task]
) -> dict:
    """Choose a learning rate, train on dev, and write the score before and after as evaluations.

    :param case: what to run.
    :param path: of the table of evaluations; the base stands there before the first.
    :param base: the base model.
    :param dev: the tasks to train on.
    :param test: the tasks to score the adapter on.
    :return: the result, without what all results have.
    """
    epochs, seed = epochs_of(case.budget), 1000 * case.seed
    score_before = mean(mean_scores(base, dev))
    rates_path = path.with_suffix(".rates")  # not .json, which results are
    on_held_back, seconds_of_trials = try_rates(
        base, dev, RATES, epochs=epochs, seed=seed, path=rates_path
    )
    lr = float(max(on_held_back, key=on_held_back.__getitem__))  # of equals the lowest
    start_of_training = time.perf_counter()
    with trained_adapter(base, dev, epochs=epochs, lr=lr, seed=seed):
        on_dev = mean_scores(base, dev)
        seconds_of_training = time.perf_counter() - start_of_training
        on_test = mean_scores(base, test)
    seconds = seconds_of_trials + seconds_of_training
    used = epochs * GRADIENT_COST + 1
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["evaluation", "score", "seconds"])
        table.writerow([0, f"{score_before:.6g}", "0"])
        table.writerow([f"{used:g}", f"{mean(on_dev):.6g}", f"{seconds:.3f}"])
    of_trials = len(RATES) * (epochs * GRADIENT_COST * (PARTS - 1) + 1) / PARTS
    return {
        "evaluations": used + of_trials,
        "evaluations of trials": of_trials,
        "learning rate": lr,
        "held-back dev by learning rate": on_held_back,
        "dev": mean(on_dev),
        "test": mean(on_test),
        "dev by task": on_dev,
        "test by task": on_test,
        "seconds": seconds,
        "seconds of evaluation": seconds_of_training,
    }
