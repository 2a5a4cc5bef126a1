"""Controls of `compare.py`: if a search gains as much on these, what it gains elsewhere is not transfer from the experts."""

import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evox_evogm.problems import Task

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def random_adapters(folders: Sequence[Path], seed: int = 0) -> dict[str, Path]:
    """Adapters of random numbers, by name: every tensor has the Frobenius norm of the one whose place it takes."""
    generator = torch.Generator().manual_seed(seed)
    root = Path(tempfile.mkdtemp(prefix="random_adapters_"))
    made = {}
    for folder in folders:
        made[folder.name] = root / folder.name
        made[folder.name].mkdir()
        shutil.copy(folder / CONFIG, root / folder.name / CONFIG)
        tensors = {}
        for name, tensor in load_file(folder / WEIGHTS).items():
            noise = torch.randn(tensor.shape, generator=generator)
            tensors[name] = (noise * tensor.float().norm() / noise.norm()).to(tensor.dtype).contiguous()
        save_file(tensors, root / folder.name / WEIGHTS, metadata={"format": "pt"})
    return made


def shuffled_answers(task: Task, seed: int = 0) -> Task:
    """The same questions with wrong answers: another question's, or with choices a random one."""
    draw = random.Random(seed)
    targets = [example.target for example in task.examples]
    draw.shuffle(targets)
    examples = tuple(
        replace(example, target=draw.choice(example.choices)[0] if example.choices else target)
        for example, target in zip(task.examples, targets, strict=True)
    )
    return replace(task, examples=examples)
