"""A LoRA trained on labelled examples by plain peft: what a merge on as many has to be ahead of.

Few examples are for merging, many for training: where the border is depends on base, experts and
tasks (`benchmarks/results/gradients.md`). The loss is that of the right answers with their ends;
prompts are read, not learnt. The adapter is fresh, or a merge in its exact low-rank form.
"""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.export import export_adapter
from evox_evogm.problems.checkpoints.what_is_possible import check_adapters_only
from evox_evogm.problems.evaluation import GRADIENT_COST
from evox_evogm.problems.inference.base_model import ready_to_score
from evox_evogm.problems.inference.derivatives import (
    at_least_float32,
    batching_to_differentiate,
    checkpointed,
    kept_bytes,
)
from evox_evogm.problems.inference.kinds_of_base import check_causal
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prepared_batches import PreparedBatch, prepare_batches
from evox_evogm.problems.inference.prompts import Request
from evox_evogm.problems.inference.shared_prefixes import Row
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.metrics import score_tasks
from evox_evogm.problems.tasks.requests import requests_of
from evox_evogm.problems.tasks.task import Example, Task

if TYPE_CHECKING:
    from peft import PeftModel

TRAINABLE = (  # metrics of tasks whose examples have the text of a right answer
    "choice_likelihood",
    "gold_log_probability",
    "exact_match",
    "multiple_choice_generation",
)
PARTS = 5  # of the examples, of which one is held back
LARGEST_NORM = 1.0  # of the gradients of all weights together
RISE = 0.1  # the part of the steps in which the learning rate rises; then it falls to 0


@dataclass(frozen=True)
class Training:
    """How an adapter is trained.

    :param lr: the highest learning rate of AdamW.
    :param epochs: passes over all examples, after which the learning rate is 0.
    :param seed: of a fresh adapter and the order of the examples.
    :param batch: examples a step.
    :param rank: of a fresh adapter, in all linear layers.
    :param alpha: of a fresh adapter.
    :param weight_decay: of AdamW.
    """

    lr: float
    epochs: int
    seed: int = 0
    batch: int = 16
    rank: int = 8
    alpha: int = 16
    weight_decay: float = 0.01


def is_trainable(task: Task) -> bool:
    """Whether the examples of a task have the text of a right answer."""
    if isinstance(task, CustomTask):
        return task.trainable
    return task.metric in TRAINABLE


def check_trainable(tasks: Sequence[Task]) -> None:
    """Refuse tasks none of which has the text of a right answer to learn.

    :raises ValueError: naming the first one.
    """
    if not any(map(is_trainable, tasks)):
        expected = f"expected a task with right answers to learn ({', '.join(TRAINABLE)})"
        found = f"found task {tasks[0].name!r} with {tasks[0].metric}"
        raise ValueError(f"training: {expected}, {found}")


def hold_back(tasks: Sequence[Task], parts: int = PARTS) -> tuple[list[Task], list[Task]]:
    """Set every `parts`-th example apart; a task that has none in a part is not in it.

    :param parts: how many parts of equal size there are; one is held back.
    :return: the tasks with the examples to train on, and with those held back.
    """
    kept_tasks, held_back_tasks = [], []
    position = 0  # among the examples of all tasks: each task holds back its share
    for task in tasks:
        kept: list[Example] = []
        held_back: list[Example] = []
        for example in task.examples:
            position += 1
            part = kept if position % parts else held_back
            part.append(example)
        if kept:
            kept_tasks.append(replace(task, examples=tuple(kept)))
        if held_back:
            held_back_tasks.append(replace(task, examples=tuple(held_back)))
    return kept_tasks, held_back_tasks


@contextmanager
def fresh_adapter(model: LanguageModel, training: Training) -> Iterator["PeftModel"]:
    """Inside the block the base has a fresh LoRA on all linear layers, whose weights learn.

    :param model: whose base gets the adapter.
    """
    from peft import LoraConfig, get_peft_model

    check_causal(model.model, "trained LoRA", "leave the trial out")
    config = LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with ready_to_score(model.model), torch.random.fork_rng():
        torch.manual_seed(training.seed)
        wrapped = get_peft_model(model.model, config)
        try:
            yield wrapped
        finally:
            wrapped.unload()


@contextmanager
def merged_adapter(problem: LoRAMergeProblem, coefficients: torch.Tensor) -> Iterator["PeftModel"]:
    """Inside the block the base has a merge as one LoRA, whose weights learn.

    Its rank in a module is the sum of the experts' ranks there.

    :param problem: whose base gets the adapter.
    :param coefficients: an `(n g,)` tensor of effective coefficients, not all 0.
    """
    from peft import PeftModel

    check_adapters_only(problem.experts, "trained LoRA: start")
    model = problem.language_model.model
    check_causal(model, "trained LoRA", "leave the trial out")
    with tempfile.TemporaryDirectory() as folder, ready_to_score(model):
        export_adapter(problem.experts, coefficients, folder, base="", groups=problem.groups)
        wrapped = PeftModel.from_pretrained(model, folder, is_trainable=True)
        try:
            yield wrapped
        finally:
            wrapped.unload()


def train(model: LanguageModel, tasks: Sequence[Task], training: Training) -> Iterator[int]:
    """Train the weights of a base that learn, those of an adapter around it.

    :param model: whose base is inside `fresh_adapter` or `merged_adapter`.
    :param tasks: to train on; those without the text of a right answer are left out.
    :return: yields the number of each epoch when it is over.
    :raises ValueError: if no task can be trained on.
    """
    check_trainable(tasks)
    requests = []
    for task in filter(is_trainable, tasks):
        requests += requests_of(task, model)
    weights = [weight for weight in model.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.lr, weight_decay=training.weight_decay)
    steps = training.epochs * -(-len(requests) // training.batch)
    rise = RISE * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (rise + 1), 1 - step / steps)
    )
    generator = random.Random(training.seed)
    for epoch in range(1, training.epochs + 1):
        shuffled = generator.sample(requests, len(requests))
        for start in range(0, len(shuffled), training.batch):
            optimizer.zero_grad()
            add_gradients(model, shuffled[start : start + training.batch])
            torch.nn.utils.clip_grad_norm_(weights, LARGEST_NORM)
            optimizer.step()
            schedule.step()
        yield epoch


def add_gradients(model: LanguageModel, requests: Sequence[Request]) -> float:
    """Add the gradients of the mean loss of answer tokens to the weights that learn.

    Passes are as small as memory makes them; where even one row takes too much, the layers run
    again during the backward pass.

    :param requests: tokens of questions and of their answers.
    :return: the loss in nats per token.
    """
    rows = []
    for prompt, answer in requests:
        rows.append(Row((*prompt, *answer), 0, shareable=0, scored=len(answer)))
    tokens = sum(len(answer) for _, answer in requests)
    total = 0.0
    for batch in prepare_batches(
        rows,
        model.forward,
        batching_to_differentiate(model.batching, model.model),
        capabilities=model.capabilities.without("share_prefixes"),
    ):
        targets: list[int] = []
        for row in batch.rows:
            targets += requests[row][1]
        with _recording(model, batch):
            # The logits of a token stand at the position before it.
            logits = at_least_float32(batch.run(model.forward, target_offset=1))  # (Q, V)
            expected = torch.tensor(targets, device=logits.device)  # (Q,)
            loss = torch.nn.functional.cross_entropy(logits, expected, reduction="sum") / tokens
            loss.backward()
        total += float(loss.detach())
    return total


@contextmanager
def _recording(model: LanguageModel, batch: PreparedBatch) -> Iterator[None]:
    """Inside the block passes are recorded, within the memory of the language model."""
    layers: AbstractContextManager[None] = nullcontext()
    if batch.tokens.numel() * kept_bytes(model.model) > model.max_memory:
        layers = checkpointed(model.model)
    with layers, torch.enable_grad():
        yield


@torch.no_grad()
def scores_by_example(model: LanguageModel, tasks: Sequence[Task]) -> dict[str, list[float]]:
    """The scores of a model as it is, by task and example.

    :param model: whose base may be inside `fresh_adapter` or `merged_adapter`.
    """
    margins = {task.name: torch.zeros(1, len(task.examples)) for task in tasks}
    scores = score_tasks(tasks, model, 1, margins)
    return {task.name: scores[task.name][0].tolist() for task in tasks}


def cost_of_training(epochs: int, part: float = 1.0) -> float:
    """What a training costs in full evaluations, as gradients of a search do.

    :param epochs: passes over the examples.
    :param part: of the dev examples that are trained on.
    """
    return GRADIENT_COST * epochs * part
