"""Classification of images as a scored task: accuracy, and the margin of every right class.

| | of an image |
| --- | --- |
| score | 1 if its class has the largest logit, else 0 |
| margin | the logit of its class less the largest other one |
| what is differentiated | the logit of its class less the log of the others' summed exponentials |
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.images.heads import Head, read_head
from evox_evogm.problems.inference.derivatives import log_odds
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.margins import signed
from evox_evogm.problems.tasks.requests import Case, candidates_of, cases_or_all
from evox_evogm.problems.tasks.task import Example, Task

if TYPE_CHECKING:
    from evox_evogm.problems.images.image_model import ImageModel

METRIC = "image_accuracy"


@dataclass(frozen=True)
class ImageExample(Example):
    """One image.

    :param image: a `(channels, height, width)` tensor as the base takes it.
    :param label: the number of its class.
    :param head: of its task.
    """

    image: torch.Tensor = field(default_factory=lambda: torch.empty(0), compare=False, repr=False)
    label: int = 0
    head: Head | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ImageTask(CustomTask):
    """Images with classes and a head. `image_task` makes it.

    :param sha256: of all pixels and the head, by which a run knows its data again.
    """

    examples: tuple[ImageExample, ...]
    sha256: str = ""

    def __post_init__(self):
        self._check_types()
        if not self.examples:
            raise ValueError(f"task {self.name!r}: expected at least one image, found none")
        self._check_ids()

    @property
    def head(self) -> Head:
        """The head that all examples share."""
        head = self.examples[0].head
        assert head is not None
        return head

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self.examples[0].image.shape)

    @property
    def counts_by_sign(self) -> bool:
        return True

    def form(self, model: "ImageModel") -> tuple:
        """Images of one shape share batches, whatever their heads are."""
        return METRIC, self.image_shape

    def tokenize(self, model: "ImageModel") -> int:
        """The number of patches of all images: what passes are counted in."""
        return len(self.examples) * model.tokens_of(self.image_shape)

    def prompts(self, model, cases) -> list:
        """None: images have no tokens."""
        return []

    def score(
        self,
        model: "ImageModel",
        cases: Sequence[Case] | None = None,
        *,
        margins: torch.Tensor | None = None,
        derivatives: torch.Tensor | None = None,
    ) -> torch.Tensor:
        cases = cases_or_all(self, cases)
        examples: list[ImageExample] = [case.example for case in cases]  # type: ignore[misc]
        images = [example.image for example in examples]
        scores = torch.full((len(cases),), torch.nan)
        differentiate = derivatives is not None
        for rows, features in model.features(images, candidates_of(cases), differentiate):
            chosen = [examples[row] for row in rows]
            with torch.set_grad_enabled(differentiate):
                logits = logits_of(features, chosen)
                if derivatives is not None:
                    odds = torch.cat(
                        [
                            log_odds(own[None], torch.tensor([example.label], device=own.device))
                            for own, example in zip(logits, chosen, strict=True)
                        ]
                    )
                    derivatives[rows] = model.derivatives_of(odds).to(derivatives)
            for row, own in zip(rows, logits, strict=True):
                score, margin = score_and_margin(own.detach().cpu(), examples[row].label)
                scores[row] = score
                if margins is not None:
                    margins[row] = margin
        return scores


def logits_of(features: torch.Tensor, examples: Sequence[ImageExample]) -> list[torch.Tensor]:
    """The logits `(K,)` of each image by the head of its task; tasks differ in K.

    :param features: an `(N, D)` tensor.
    """
    rows_of: dict[int, list[int]] = {}  # by the head
    for row, example in enumerate(examples):
        rows_of.setdefault(id(example.head), []).append(row)
    logits = [torch.empty(0)] * len(examples)
    for rows in rows_of.values():
        head = examples[rows[0]].head
        assert head is not None
        for row, own in zip(rows, head.logits(features[rows]), strict=True):
            logits[row] = own
    return logits


def score_and_margin(logits: torch.Tensor, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The score and the margin of an image, both NaN if a logit is.

    Of equal logits the first is the largest, as in `torch.argmax`.

    :param logits: a `(K,)` tensor.
    """
    if not logits.isfinite().all():
        unknown = torch.tensor(torch.nan)
        return unknown, unknown
    others = torch.cat([logits[:label], logits[label + 1 :]])
    right = (logits.argmax() == label).float()
    return right, signed(logits[label] - others.max(), right)


def image_task(
    name: str,
    images: torch.Tensor,
    labels: torch.Tensor | Sequence[int],
    head,
    *,
    version: str = "1",
    ids: Sequence[str] | None = None,
) -> ImageTask:
    """A task of S images.

    :param name: unique within a problem.
    :param images: an `(S, channels, height, width)` tensor as the base takes it, its
        `pixel_values`.
    :param labels: the number of the class of each image: a row of the head.
    :param head: see `read_head`.
    :param version: of the data.
    :param ids: of the images. Defaults to their numbers.
    :raises ValueError: in one sentence, if they do not fit together.
    """
    where = f"task {name!r}"
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or not images.is_floating_point():
        found = type(images).__name__
        if isinstance(images, torch.Tensor):
            found = f"{tuple(images.shape)} in {images.dtype}"
        raise ValueError(
            f"{where}: expected images as floating-point pixel values of the shape (S, channels, "
            f"height, width), as the image processor of the base makes them, found {found}"
        )
    if not images.isfinite().all():
        raise ValueError(f"{where}: expected finite pixel values, found others")
    try:
        own_head = read_head(head)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    classes = [int(label) for label in labels]
    if len(classes) != len(images):
        raise ValueError(
            f"{where}: expected a label for each of {len(images)} images, found {len(classes)}"
        )
    count = len(own_head.weight)
    examples = []
    for number, (image, label) in enumerate(zip(images, classes, strict=True)):
        if not 0 <= label < count:
            raise ValueError(
                f"{where}: expected labels from 0 to {count - 1}, the rows of its head, found "
                f"{label} of image {number}"
            )
        id = str(number) if ids is None else ids[number]
        examples.append(ImageExample(id, "", str(label), (), image, label, own_head))
    return ImageTask(
        name=name,
        version=version,
        metric=METRIC,
        examples=tuple(examples),
        sha256=sha256_of(images, own_head),
    )


def sha256_of(images: torch.Tensor, head: Head) -> str:
    """SHA-256 of images and a head."""
    digest = hashlib.sha256()
    for tensor in (*images, head.weight, head.bias):
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def reads_images(tasks: Sequence[Task]) -> bool:
    """Whether tasks are those of an image model.

    :raises ValueError: if some are and others ask for texts.
    """
    # Dev and test tasks of one name count once.
    images = dict.fromkeys(task.name for task in tasks if isinstance(task, ImageTask))
    texts = dict.fromkeys(task.name for task in tasks if not _may_be_of_images(task))
    if images and texts:
        raise ValueError(
            f"tasks: expected those of one kind of base, found images ({', '.join(images)}) and "
            f"texts ({', '.join(texts)})"
        )
    return bool(images)


def _may_be_of_images(task: Task) -> bool:
    """Whether a task reads images, or is a function, which may read anything."""
    from evox_evogm.problems.functions.fitness_task import FitnessTask

    return isinstance(task, (ImageTask, FitnessTask))
