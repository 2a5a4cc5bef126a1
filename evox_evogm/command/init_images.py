"""Tasks of images in a new settings file: which images and which head, and whether they fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evox_evogm.command.relative_paths import path_from
from evox_evogm.monitoring.escaping import sanitize
from evox_evogm.near_path import near_path

if TYPE_CHECKING:
    from evox_evogm.command.look_at_adapters import LookedAt

ARRAYS = ".npz"
HEAD = "head.safetensors"  # in the folder of a task, beside its dev and test images
DEV_NAMES = ("dev", "validation", "val")
FORMS = "FOLDER (with dev and test in it), DEV,TEST or DEV,TEST,HEAD for an image model"
DEV, TEST = 50, 500  # all pixels stay in memory, and each image is scored for each merge
CLASSES_SHOWN = 20


class ImageWord(NamedTuple):
    """A task of images as a user names it.

    :param word: the user's.
    :param dev: a folder with a folder of images for each class, or an `.npz` file.
    :param test: the same.
    :param head: of the task; None to look for it.
    """

    word: str
    dev: Path
    test: Path
    head: Path | None

    @property
    def name(self) -> str:
        """Of the task: `birds` for `birds/dev` and for `birds_dev.npz`."""
        from evox_evogm.command.init_tasks import name_without_split

        stem = self.dev.stem
        if stem in DEV_NAMES and self.dev.absolute().parent.name:
            return self.dev.absolute().parent.name
        return name_without_split(self.dev) if self.dev.suffix == ARRAYS else self.dev.name


def names_images(word: str) -> bool:
    """Whether a task that a user names is one of images: its dev part is a folder or `.npz`."""
    first = Path(word.partition(",")[0])
    return first.is_dir() or first.suffix == ARRAYS


def of_images(base: str, words: Sequence[str]) -> bool:
    """Whether the tasks are of images, as the base wants it.

    :param base: a folder or a hub id. Of one that cannot be read the tasks decide.
    :param words: tasks as the user names them.
    :raises ValueError: if some tasks are of another kind than the base, in one sentence.
    """
    from evox_evogm.problems.images.fitting_base import kind_of_base

    images = [word for word in words if names_images(word)]
    kind, model_type = kind_of_base(base)
    if kind is None:
        kind = bool(images)
    found = f"{base!r} ({model_type})" if model_type else repr(base)
    if not kind and images:
        raise ValueError(f"task: expected texts for the base {found}, found images: {images[0]}")
    if kind and len(images) < max(len(words), 1):
        others = [word for word in words if word not in images]
        given = others[0] if others else "none"
        raise ValueError(
            f"task: expected images for the image model {found}, found {given}; give --task as "
            f"{FORMS.removesuffix(' for an image model')}"
        )
    return kind


def check_heads(adapters: "Sequence[LookedAt]", images: bool) -> None:
    """Refuse adapters whose heads the base of their kind cannot have.

    :param images: whether the base is an image model.
    :raises ValueError: in one sentence.
    """
    from evox_evogm.problems.checkpoints.read_experts import read_any_expert
    from evox_evogm.problems.images.heads import HEADS
    from evox_evogm.problems.images.image_base import check_no_factors_of_head

    for adapter in adapters:
        if adapter.checkpoint is not None:
            continue
        heads = HEADS if images else ()
        expert = read_any_expert(adapter.folder, name=adapter.name, heads=heads)
        if images:
            check_no_factors_of_head(expert)


def note_of_processor(base: str) -> str | None:
    """What is missing where a folder with an image model has no image processor; else None."""
    from evox_evogm.problems.images.read_images import PROCESSOR
    from evox_evogm.problems.inference.find_base import config_folder

    folder = config_folder(base) if Path(base).is_dir() else None
    if folder is None or (folder / PROCESSOR).is_file():
        return None
    return f"{base} has no {PROCESSOR}: name a folder or hub id with one as processor of each task"


def parse_images(word: str) -> ImageWord:
    """The images and the head that a word names.

    :param word: one of `FORMS`. The test part may be left out where it is named as the dev part.
    :raises ValueError: in one sentence, if one of them is not there.
    """
    parts = [Path(part) for part in word.split(",")]
    head = None
    if len(parts) == 3 or (len(parts) == 2 and parts[1].suffix == ".safetensors"):
        head = parts.pop()
    if len(parts) == 1:
        parts = _splits_of(parts[0])
    if len(parts) != 2:
        raise ValueError(f"task: expected {FORMS}, found {word!r}")
    for path in [*parts, *([] if head is None else [head])]:
        if not path.exists():
            raise ValueError(
                f"task: expected {FORMS}, found no file or folder {path}{near_path(path)}"
            )
    dev, test = parts
    # A folder of several tasks may hold the head of one of them.
    if head is None and dev.stem in DEV_NAMES and (dev.parent / HEAD).is_file():
        head = dev.parent / HEAD
    return ImageWord(word, dev, test, head)


def _splits_of(path: Path) -> list[Path]:
    """The dev and the test part of one path: both in a folder, or the dev part alone."""
    for name in DEV_NAMES:
        for ending in ("", ARRAYS):
            dev, test = path / f"{name}{ending}", path / f"test{ending}"
            if dev.exists() and test.exists():
                return [dev, test]
    for name in DEV_NAMES:
        if path.stem == name or path.stem.endswith((f"_{name}", f"-{name}")):
            stem = path.stem.removesuffix(name) + "test"
            return [path, path.with_name(stem + path.suffix)]
    raise ValueError(f"task: expected {FORMS}, found {path} without images of dev and test")


def image_settings(
    word: ImageWord, adapters: "Sequence[LookedAt]", folder: Path
) -> tuple[dict, str]:
    """The settings of a task of images, and what they name in words.

    :param word: what the user named.
    :param adapters: the one of the task's name may hold its head.
    :param folder: the folder that paths are to be relative to.
    :raises ValueError: in one sentence, if there is no head, or images and head do not fit.
    """
    from evox_evogm.problems.images.heads import read_head
    from evox_evogm.problems.images.image_files import list_images
    from evox_evogm.problems.images.read_images import name_of, number_classes

    settings: dict = {
        "images": path_from(word.dev, folder),
        "test_images": path_from(word.test, folder),
    }
    try:
        splits = [list_images(path) for path in (word.dev, word.test)]
        source, hub = _head_of(word, adapters)
        head = read_head(source)
        found = sorted({*splits[0].classes, *splits[1].classes})
        rows = number_classes(found, None, source, head)
    except ValueError as error:
        raise ValueError(f"task {word.name!r}: {error}") from error
    settings["head"] = path_from(source, folder) if hub is None else hub
    if word.name != name_of(Path(settings["images"])):
        settings["name"] = word.name
    sizes = []
    for split, images, most in zip(("dev", "test"), splits, (DEV, TEST), strict=True):
        count = len(images.images)
        if count > most:
            settings[split] = most
        sizes.append(f"{most} of {count} {split}" if count > most else f"{count} {split}")
    words = f"{' and '.join(sizes)} images, {_classes_in_words(rows, len(head.weight))}"
    return settings, sanitize(words)


def _head_of(word: ImageWord, adapters: "Sequence[LookedAt]") -> tuple[Path, str | None]:
    """Where the head of a task is: as the user says, or in the expert of its name.

    :return: a file or a folder, and the hub id of the expert where it has one.
    :raises ValueError: if there is none, saying how to give it.
    """
    from evox_evogm.problems.images.heads import read_head

    if word.head is not None:
        return word.head, None
    for adapter in adapters:
        if adapter.name == word.name:
            read_head(adapter.folder)
            return adapter.folder, adapter.hub
    names = ", ".join(adapter.name for adapter in adapters)
    raise ValueError(
        f"expected a head, which is {HEAD} beside the images or in the expert of the task's name, "
        f"found neither, and the experts {names}; give it as --task {word.dev},{word.test},HEAD"
    )


def _classes_in_words(rows: dict[str, int], count: int) -> str:
    """The classes of a task in the order of the head's rows."""
    if not rows:
        return f"{count} classes by number"
    ordered = sorted(rows, key=lambda name: rows[name])
    shown = ", ".join(ordered[:CLASSES_SHOWN])
    more = ", ..." if len(ordered) > CLASSES_SHOWN else ""
    return f"{count} classes: {shown}{more}"
