"""What the results of a run depend on: all that its settings name, and versions."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from evox_evogm.command.tasks import RunTasks
from evox_evogm.problems.adapters.read_adapter import CONFIG, WEIGHTS
from evox_evogm.problems.checkpoints.checkpoint_files import (
    MODEL_CONFIG,
    is_checkpoint,
    weight_files,
)
from evox_evogm.problems.inference.base_model import tokenizer_sha256, weights_sha256
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.texts import reads_texts
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.task import Task

OURS = ", protocol='ours')"  # how the content of such a task ends
BLOCK = 2**24  # bytes of a file that are read at a time
PACKAGES = ("evox-evogm", "evox", "torch", "transformers", "peft")


def input_digests(
    language_model: ScoredModel, tasks: RunTasks, experts: Mapping[str, Path]
) -> dict[str, str]:
    """Digests of base, tokenizer, tasks and adapters, by name. The history depends on them.

    :param experts: the adapter folder of every expert, by its name.
    """
    digests = {"base": weights_sha256(language_model.model)}
    if reads_texts(language_model):
        digests["tokenizer"] = tokenizer_sha256(language_model.tokenizer)
    for split, task in tasks.by_split():
        digests[f"task {task.name} ({split})"] = hashlib.sha256(task_content(task)).hexdigest()
    for name, folder in experts.items():
        if is_checkpoint(folder):
            digests[f"expert {name}"] = checkpoint_sha256(folder)
            continue
        content = (folder / CONFIG).read_bytes() + (folder / WEIGHTS).read_bytes()
        digests[f"expert {name}"] = hashlib.sha256(content).hexdigest()
    return digests


def checkpoint_sha256(folder: Path) -> str:
    """SHA-256 of the configuration and the weights of a whole model."""
    digest = hashlib.sha256((folder / MODEL_CONFIG).read_bytes())
    for path in weight_files(folder, str(folder)):
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def task_content(task: Task) -> bytes:
    """What a task is made of, without the version, which belongs to both splits together.

    Protocol `ours` is left out, so that runs from before there was another one go on.
    """
    content = repr(replace(task, version=""))
    if content.endswith(OURS):
        content = content.removesuffix(OURS) + ")"
    return content.encode()


def made_with(language_model: ScoredModel, tasks: Sequence[Task] = ()) -> dict:
    """What the last digits of the results may depend on: device, threads and versions.

    :param tasks: which may need further packages.
    """
    packages = list(PACKAGES)
    for task in tasks:
        if isinstance(task, CustomTask):
            packages += task.packages
    return {
        "device": str(language_model.device),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in packages},
    }
