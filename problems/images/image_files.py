"""Images on the disk: a folder of classes, or arrays of numpy.

A folder holds a folder for each class, with the images of the class in it at any depth. An `.npz`
file holds the arrays `images` and `labels`: images of bytes `(S, height, width)` or `(S, height,
width, channels)`, and the numbers of their classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
ARRAYS = ".npz"


class ImageFile(NamedTuple):
    """An image that is not read yet.

    :param id: the name of what was given, and the place of the image in it.
    :param label: the name of its class; of arrays the number of its class.
    :param source: its file, or its pixels.
    """

    id: str
    label: str | int
    source: Path | np.ndarray

    def read(self) -> Any:
        """The image as PIL has it, in colours.

        :raises ValueError: if it cannot be read.
        """
        from PIL import Image

        if isinstance(self.source, np.ndarray):
            return Image.fromarray(self.source).convert("RGB")
        try:
            with Image.open(self.source) as image:
                return image.convert("RGB")
        except Exception as error:  # each format raises its own
            raise ValueError(f"expected an image, found {self.source}: {error}") from error


class ImageFiles(NamedTuple):
    """The images of a folder or file, in order.

    :param images: all of them.
    :param classes: the names of the folders; empty where labels are numbers.
    """

    images: list[ImageFile]
    classes: list[str]


def list_images(path: Path) -> ImageFiles:
    """The images of a folder of classes, or of an `.npz` file.

    :raises ValueError: in one sentence, if there are none.
    """
    if path.is_dir():
        return _in_folders(path)
    if path.suffix == ARRAYS:
        return ImageFiles(_in_arrays(path), [])
    found = "no such folder" if not path.exists() else "another file"
    raise ValueError(
        f"expected a folder with a folder of images for each class, or an {ARRAYS} file, "
        f"found {found} at {path}"
    )


def shuffled(images: Sequence[ImageFile], seed: int) -> list[ImageFile]:
    """The images in random order, the same for each seed: the first ones are of all classes."""
    order = np.random.default_rng(seed).permutation(len(images))
    return [images[place] for place in order]


def _in_folders(folder: Path) -> ImageFiles:
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir())
    images = []
    for name in classes:
        for file in sorted((folder / name).rglob("*")):
            if file.suffix.lower() in SUFFIXES and file.is_file():
                id = f"{folder.name}/{file.relative_to(folder).as_posix()}"
                images.append(ImageFile(id, name, file))
    if not images:
        raise ValueError(
            f"expected a folder of images for each class in {folder}, found no images in "
            f"{len(classes)} folders"
        )
    return ImageFiles(images, classes)


def _in_arrays(path: Path) -> list[ImageFile]:
    try:
        with np.load(path, allow_pickle=False) as arrays:  # a pickle runs code when it is read
            pixels, labels = arrays["images"], arrays["labels"]
    except Exception as error:  # numpy, zipfile and zlib raise their own
        raise ValueError(
            f"expected the arrays images and labels in {path}, found {error}"
        ) from error
    colours = pixels.ndim == 4 and pixels.shape[-1] == 3
    if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or colours) or not len(pixels):
        raise ValueError(
            f"expected images of bytes of the shape (S, height, width) or (S, height, width, 3) "
            f"in {path}, found {pixels.shape} in {pixels.dtype}"
        )
    if labels.shape != pixels.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"expected a whole number as the label of each of {len(pixels)} images in {path}, "
            f"found {labels.shape} in {labels.dtype}"
        )
    images = []
    for place, label in enumerate(labels.tolist()):
        images.append(ImageFile(f"{path.name}/{place}", label, pixels[place]))
    return images
