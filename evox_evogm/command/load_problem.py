"""The problem that settings describe: base, experts and tasks, ready to score merges."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evox_evogm.command.batch_settings import batch_tokens_of, max_memory_of
from evox_evogm.command.relative_paths import place_of
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.tasks import RunTasks
from evox_evogm.problems.lora_merge import LoRAMergeProblem


def load_problem(
    settings: RunSettings,
    folder: Path,
    base: str,
    experts: Mapping[str, Path],
    tasks: RunTasks,
    **more: Any,
) -> LoRAMergeProblem:
    """Load the base and the experts, and make the problem of scoring their merges on the tasks.

    What belongs to a search (objective, groups, RegMean, racing) is not taken from the settings.

    :param folder: the folder that paths in the settings are relative to.
    :param base: as `base_of_settings` gives it.
    :param experts: the folder of every expert.
    :param tasks: of the run.
    :param more: further arguments of `LoRAMergeProblem`.
    :raises ValueError: if a part cannot be used, in one sentence.
    """
    template = settings.chat_template_file
    device = resolve_device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # on which kernels of Triton and other libraries are launched
    return LoRAMergeProblem(
        base,
        experts,
        tasks.dev,
        other_tasks=tasks.test,
        dtype=None if settings.dtype == "auto" else getattr(torch, settings.dtype),
        quantization=settings.quantization,
        device_map=settings.device_map,
        device=device,
        batch_tokens=batch_tokens_of(settings),
        max_memory=max_memory_of(settings),
        mode=settings.mode,
        trust_remote_code=settings.trust_remote_code,
        same_base=settings.same_base,
        chat_template=settings.chat_template,
        chat_date=settings.date_of_chats,
        chat_template_file=None if template is None else place_of(template, folder),
        **more,
    )


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; `auto` takes a GPU where there is one, a rank its own.

    :raises ValueError: if torch cannot use it here.
    """
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if name in ("auto", "cuda"):
        # torchrun numbers the ranks of a machine, each of which has a GPU.
        name = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # and all that torch was ever made for
            reason = "it is no kind of device; auto, cpu, cuda and cuda:1 are some"
        raise ValueError(
            f"device: expected one that torch can use here, found {name!r}: {reason}"
        ) from error
