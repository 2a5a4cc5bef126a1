"""Controls of `compare.py`: if a search gains as much on these, what it gains elsewhere is not transfer from the experts."""

import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evox_evogm.problems import Task

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@contextmanager
def random_adapters(folders: Sequence[Path], seed: int = 0) -> Iterator[dict[str, Path]]:
    """Inside the block, adapters of random numbers by name: every tensor has the Frobenius norm of the one it stands for."""
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory(prefix="random_adapters_") as root:
        made = {folder.name: Path(root) / folder.name for folder in folders}
        for folder in folders:
            made[folder.name].mkdir()
            shutil.copy(folder / CONFIG, made[folder.name] / CONFIG)
            tensors = {}
            for name, tensor in load_file(folder / WEIGHTS).items():
                noise = torch.randn(tensor.shape, generator=generator)
                tensors[name] = (
                    (noise * tensor.float().norm() / noise.norm()).to(tensor.dtype).contiguous()
                )
            save_file(tensors, made[folder.name] / WEIGHTS, metadata={"format": "pt"})
        yield made


def shuffled_answers(task: Task, seed: int = 0) -> Task:
    """The same questions with wrong answers: that of another question, or with choices another choice.

    :raises ValueError: if all questions have the same answer and no choices.
    """
    draw = random.Random(seed)
    targets = [example.target for example in task.examples]
    if len(set(targets)) == 1 and not task.examples[0].choices:
        raise ValueError(
            f"task {task.name!r}: expected different answers to shuffle, found only {targets[0]!r}"
        )
    examples = tuple(
        replace(example, target=draw.choice([key for key in keys if key != example.target]))
        for example in task.examples
        for keys in [[key for key, _ in example.choices] or targets]
    )
    return replace(task, examples=examples)
