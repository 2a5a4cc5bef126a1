"""Whether tasks and a base are of one kind: texts and a language model, or images and theirs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evox_evogm.problems.images.image_base import is_image_config
from evox_evogm.problems.images.image_task import ImageTask, reads_images
from evox_evogm.problems.inference.find_base import config_folder
from evox_evogm.problems.tasks.task import Task


class KindOfBase(NamedTuple):
    """What the configuration of a base says that it reads.

    :param images: whether it is an image model; None if it may be both, or cannot be read.
    :param model_type: as transformers calls it, such as `vit`; None if it cannot be read.
    """

    images: bool | None
    model_type: str | None


def kind_of_base(base: str | Path) -> KindOfBase:
    """The kind of a base, a folder or a hub id, of which nothing but its configuration is read."""
    from transformers import AutoConfig

    folder = config_folder(str(base))
    if folder is None:
        return KindOfBase(None, None)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # loading the base says what is wrong with it
        return KindOfBase(None, None)
    return KindOfBase(is_image_config(config), config.model_type)


def read_kind(tasks: Sequence[Task], base) -> bool:
    """Whether tasks are of images, as they and the base say.

    :param base: as `LoRAMergeProblem` takes it. A loaded model is looked at elsewhere.
    :raises ValueError: if tasks are of two kinds, or of another than the base.
    """
    images = reads_images(tasks)
    if isinstance(base, (str, Path)):
        first = next(task for task in tasks if isinstance(task, ImageTask) or not images)
        check_fits_base(first.name, base, images=images)
    return images


def check_fits_base(task: str, base: str | Path, *, images: bool) -> None:
    """Refuse a task of images for a language model, and any other task for an image model.

    :param task: its name.
    :param base: a folder or a hub id.
    :param images: whether the task is one of images.
    :raises ValueError: in one sentence that says what would fit.
    """
    found = kind_of_base(base)
    if found.images is None or found.images == images:
        return
    named = f"{str(base)!r} ({found.model_type})"
    if images:
        raise ValueError(
            f"task {task!r}: expected an image model for a task of images, found the language "
            f"model {named}; give as base the image model that the experts were trained on, or "
            "tasks of texts"
        )
    raise ValueError(
        f"task {task!r}: expected a language model for a task of texts, found the image model "
        f"{named}; give as base the language model that the experts were trained on, or tasks of "
        "images"
    )
