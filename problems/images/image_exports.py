"""What exports of image models have in place of a tokenizer, logits and prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evox_evogm.problems.images.heads import CLASSIFIER
from evox_evogm.problems.images.image_model import ImageForward, ImageModel
from evox_evogm.problems.images.image_task import ImageTask
from evox_evogm.problems.images.read_images import load_processor
from evox_evogm.problems.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def first_images(tasks: Sequence[Task], count: int) -> list[torch.Tensor]:
    """`(1, channels, height, width)` images, taken from all tasks in turn."""
    of_images = [task for task in tasks if isinstance(task, ImageTask)]
    images: list[torch.Tensor] = []
    for place in range(max(len(task.examples) for task in of_images)):
        for task in of_images:
            if place < len(task.examples) and len(images) < count:
                images.append(task.examples[place].image[None])
    return images


def plain_features(model: "PreTrainedModel", image: torch.Tensor) -> torch.Tensor:
    """The features `(1, D)` of a plain pass over one image."""
    return ImageForward(model).features([0], image)


def auto_name(model: torch.nn.Module) -> str:
    """The class of transformers that loads a model like this one."""
    return "AutoModelForImageClassification" if hasattr(model, CLASSIFIER) else "AutoModel"


def save_processor(base: str, folder: Path) -> None:
    """Write the image processor of a base beside an export, if the base has one.

    :param base: that the model was loaded by.
    """
    try:
        load_processor(base).save_pretrained(folder)
    except ValueError:  # pixels were made in Python, in some other way
        return


def load_exported(own: ImageModel, folder: Path) -> ImageModel:
    """An image model that transformers loads from a folder, in the dtype of its file.

    :param own: the base, in whose batches it scores.
    """
    kind: Any = type(own.model)
    loaded = kind.from_pretrained(folder, dtype="auto", use_safetensors=True)
    loaded.to(own.device)
    model = ImageModel(
        loaded.requires_grad_(False).eval(),
        batch_tokens=own.batch_sizes,
        max_memory=own.max_memory,
    )
    model.rely_on(own.capabilities)
    return model
