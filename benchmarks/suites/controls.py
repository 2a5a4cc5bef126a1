"""Controls of a comparison: merges from which nothing can be learnt about the experts.

A search that gains as much on these does not transfer what experts know.
"""

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


def same_norm(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random numbers of the shape, the dtype and the Frobenius norm of a tensor."""
    noise = torch.randn(tensor.shape, generator=generator)
    scaled = noise * tensor.float().norm() / noise.norm()
    return scaled.to(tensor.dtype).contiguous()


@contextmanager
def random_adapters(folders: Sequence[Path], seed: int = 0) -> Iterator[dict[str, Path]]:
    """Inside the block, adapters of random numbers by name.

    :param folders: of the adapters whose names, settings and norms they have.
    :param seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory(prefix="random_adapters_") as root:
        made = {folder.name: Path(root) / folder.name for folder in folders}
        for folder in folders:
            copy = made[folder.name]
            copy.mkdir()
            shutil.copy(folder / CONFIG, copy / CONFIG)
            tensors = load_file(folder / WEIGHTS)
            for name, tensor in tensors.items():
                tensors[name] = same_norm(tensor, generator)
            save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
        yield made


def shuffled_answers(task: Task, seed: int = 0) -> Task:
    """The same questions with wrong answers.

    :param task: as it is. A question with choices gets another choice as its answer, one without
        the answer of another question.
    :param seed: of the draw.
    :return: the task with other targets.
    :raises ValueError: if all questions have the same answer and no choices.
    """
    draw = random.Random(seed)
    targets = [example.target for example in task.examples]
    if len(set(targets)) == 1 and not task.examples[0].choices:
        raise ValueError(
            f"task {task.name!r}: expected different answers to shuffle, found only {targets[0]!r}"
        )
    examples = []
    for example in task.examples:
        answers = [key for key, _ in example.choices] or targets
        wrong = [answer for answer in answers if answer != example.target]
        examples.append(replace(example, target=draw.choice(wrong)))
    return replace(task, examples=tuple(examples))
