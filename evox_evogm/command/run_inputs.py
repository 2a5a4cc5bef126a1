"""What the results of a run depend on: all that its settings name, and versions."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from evox_evogm.command.tasks import RunTasks
from evox_evogm.problems.adapters.read_adapter import CONFIG, WEIGHTS
from evox_evogm.problems.inference.base_model import tokenizer_sha256, weights_sha256
from evox_evogm.problems.inference.language_model import LanguageModel

PACKAGES = ("evox-evogm", "evox", "torch", "transformers", "peft")


def input_digests(
    language_model: LanguageModel, tasks: RunTasks, experts: Mapping[str, Path]
) -> dict[str, str]:
    """Digests of base, tokenizer, tasks and adapters, by name. The history depends on them.

    :param experts: the adapter folder of every expert, by its name.
    """
    digests = {
        "base": weights_sha256(language_model.model),
        "tokenizer": tokenizer_sha256(language_model.tokenizer),
    }
    for split, task in tasks.by_split():
        # Without the version, which belongs to both splits together.
        content = repr(replace(task, version="")).encode()
        digests[f"task {task.name} ({split})"] = hashlib.sha256(content).hexdigest()
    for name, folder in experts.items():
        content = (folder / CONFIG).read_bytes() + (folder / WEIGHTS).read_bytes()
        digests[f"expert {name}"] = hashlib.sha256(content).hexdigest()
    return digests


def made_with(language_model: LanguageModel) -> dict:
    """What the last digits of the results may depend on: device, threads and versions."""
    return {
        "device": str(language_model.device),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in PACKAGES},
    }
