"""Tasks of images from files, with the image processor of the base and a head on the disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from evox_evogm.problems.checkpoints.checkpoint_files import MODEL_CONFIG
from evox_evogm.problems.images.heads import Head, read_head
from evox_evogm.problems.images.image_files import ImageFile, list_images, shuffled
from evox_evogm.problems.images.image_task import ImageTask, image_task
from evox_evogm.problems.inference.find_base import find_base

BATCH = 64  # images that are processed together
PROCESSOR = "preprocessor_config.json"


def read_images(
    dev,
    test,
    *,
    head,
    processor,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    n_dev: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
) -> tuple[ImageTask, ImageTask]:
    """A dev and a test task of images.

    Each split is a folder with a folder of images for each class, or an `.npz` file, see
    `image_files.py`. Its images are taken in random order, always the same.

    :param dev: what the search sees.
    :param test: what is kept.
    :param head: of the task, see `read_head`.
    :param processor: an image processor of transformers, or the folder or hub id that has one, such
        as that of the base.
    :param name: of the task. Defaults to the name of the folder, or of its parent where it is
        called dev, train, val or validation.
    :param classes: the names of the folders in the order of the head's rows. Defaults to the names
        in the `config.json` beside the head where it has all of them, else to alphabetical order.
    :param n_dev: how many images of dev are taken; all by default.
    :param n_test: how many images of test are taken; all by default.
    :param seed: of the order.
    :raises ValueError: in one sentence, if something cannot be read or does not fit.
    """
    name = name_of(Path(dev)) if name is None else name
    where = f"task {name!r}"
    if Path(dev).resolve() == Path(test).resolve():
        raise ValueError(f"{where}: expected other images for test than for dev, found {dev} twice")
    try:
        splits = [list_images(Path(path)) for path in (dev, test)]
        own_head = read_head(head)
        found = sorted({*splits[0].classes, *splits[1].classes})
        numbers = number_classes(found, classes, head, own_head)
        process = load_processor(processor) if isinstance(processor, (str, Path)) else processor
        tasks = []
        for split, count in zip(splits, (n_dev, n_test), strict=True):
            images = shuffled(split.images, seed)[:count]
            pixels = pixels_of(images, process)
            labels = []
            for image in images:
                label = image.label
                labels.append(label if isinstance(label, int) else numbers[label])
            tasks.append((pixels, labels, [image.id for image in images]))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    (pixels, labels, ids), (test_pixels, test_labels, test_ids) = tasks
    return (
        image_task(name, pixels, labels, own_head, ids=ids),
        image_task(name, test_pixels, test_labels, own_head, ids=test_ids),
    )


def name_of(path: Path) -> str:
    """The name of a task by the path of its dev images."""
    if path.stem in ("dev", "train", "val", "validation") and path.parent.name:
        return path.parent.name
    return path.stem


def number_classes(
    found: Sequence[str], classes: Sequence[str] | None, source, head: Head
) -> dict[str, int]:
    """The row of the head for the name of each folder; empty where labels are numbers.

    :param found: the names of all folders, in order.
    :param classes: their order, if it is given.
    :param source: of the head.
    :raises ValueError: if they are not as many as the head has rows, or a name is unknown.
    """
    if not found:
        return {}
    if classes is None:
        named = _named_beside(source)
        classes = named if set(found) <= set(named) else found
    unknown = [name for name in found if name not in classes]
    if unknown or len(set(classes)) != len(classes):
        wrong = f"a folder {unknown[0]!r}" if unknown else "some names twice"
        raise ValueError(f"classes: expected the name of each folder once, found {wrong}")
    if len(classes) != len(head.weight):
        raise ValueError(
            f"expected a class for each of the {len(head.weight)} rows of the head, found "
            f"{len(classes)}; give classes, the names of the folders in the order of the rows"
        )
    return {name: place for place, name in enumerate(classes)}


def _named_beside(source) -> list[str]:
    """The names of classes in the `config.json` of a folder with a head, in order; else none."""
    if not isinstance(source, (str, Path)):
        return []
    try:
        config = json.loads((Path(source) / MODEL_CONFIG).read_text(encoding="utf-8"))
        names = {int(place): str(name) for place, name in config["id2label"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []
    return [names[place] for place in sorted(names)]


def load_processor(source) -> Any:
    """The image processor of a folder or hub id, by PIL, so that all machines give the same pixels.

    :raises ValueError: if there is none.
    """
    from transformers import AutoImageProcessor

    found, revision = find_base(source)
    options = {} if revision is None else {"revision": revision}
    try:
        return AutoImageProcessor.from_pretrained(found, backend="pil", **options)
    except Exception as error:  # each layer below raises its own
        if Path(found).is_dir() and not (Path(found) / PROCESSOR).is_file():
            reason = "the folder has no such file"
        else:
            words = str(error).strip() or type(error).__name__
            reason = words.splitlines()[0].partition(". ")[0]
        raise ValueError(
            f"processor: expected a folder or hub id with {PROCESSOR}, found {str(source)!r}: "
            f"{reason}; name one as processor of the task"
        ) from error


def pixels_of(images: Sequence[ImageFile], process) -> torch.Tensor:
    """What an image processor makes of images, `(S, channels, height, width)` in float32."""
    parts = []
    for start in range(0, len(images), BATCH):
        batch = [image.read() for image in images[start : start + BATCH]]
        made = process(images=batch, return_tensors="pt")["pixel_values"]
        parts.append(made.to(torch.float32))
    return torch.cat(parts)
