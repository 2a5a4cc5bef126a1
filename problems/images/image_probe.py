"""What an image model gives rightly, found out on this very base with images of the run.

Batches, experts that are added by hooks, and candidates that share a batch are compared with plain
passes over one image, and with experts in the weights. What differs by more than rounding is
switched off.
"""

import logging
from collections.abc import Mapping, Sequence

import torch

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.adapters.weight_merger import WeightMerger, merged_in_place
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.images.image_task import ImageTask
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.logit_differences import (
    LEAST_ROUNDING,
    Tolerance,
    difference,
    rounded_differently,
)
from evox_evogm.problems.tasks.task import Task

log = logging.getLogger(__name__)


@torch.no_grad()
def probe_images(
    model: ImageModel,
    modules: Mapping[str, StackedModule],
    n_coefficients: int,
    tasks: Sequence[Task],
    merger: WeightMerger | None = None,
) -> Capabilities:
    """Find out what may be relied on, and log it.

    :param modules: the stacked experts.
    :param n_coefficients: n g.
    :param tasks: of the run, whose first images and heads are tried.
    :param merger: puts experts into the weights; None if the copy would take too much memory.
    :raises ValueError: if the base cannot be used, or a head does not fit its features.
    """
    probe = ImageProbe(model, modules, n_coefficients, images_of(tasks), merger)
    probe.check_heads([task for task in tasks if isinstance(task, ImageTask)])
    found = probe.find()
    for note in found.notes:
        log.warning("base: %s", note)
    if not found.notes:
        log.info("base: batches and merges agree with plain passes")
    return found


def images_of(tasks: Sequence[Task]) -> torch.Tensor:
    """Two images `(2, channels, height, width)` of the first task that has some."""
    task = next(task for task in tasks if isinstance(task, ImageTask))
    first, last = task.examples[0].image, task.examples[-1].image
    return torch.stack([first, last])


class ImageProbe:
    """Comparisons with plain passes over single images, see `probe_images`."""

    def __init__(
        self,
        model: ImageModel,
        modules: Mapping[str, StackedModule],
        n_coefficients: int,
        images: torch.Tensor,
        merger: WeightMerger | None,
    ):
        self.model = model
        self.modules = modules
        self.merger = merger
        self.images = images
        halves = torch.full((n_coefficients,), 0.5)
        self.pop = torch.stack([halves, -halves])  # (2, n g)
        self.plain = self._one_by_one()
        self.tolerance = Tolerance(model.model.dtype)
        self.tolerance.rounding = self._measure_rounding()

    def check_heads(self, tasks: Sequence[ImageTask]) -> None:
        """Refuse a head for features of another width."""
        width = self.plain.shape[1]
        for task in tasks:
            inputs = task.head.weight.shape[1]
            if inputs != width:
                raise ValueError(
                    f"task {task.name!r}: expected a head with an input for each of the {width} "
                    f"features of the base, found {inputs}"
                )

    def find(self) -> Capabilities:
        """Make all comparisons.

        :raises ValueError: if plain passes cannot be repeated, or nothing adds the experts.
        """
        able = self.model.capabilities
        if not self.plain.isfinite().all():
            return able.note("found no finite features, so nothing could be compared")
        if not self.tolerance.agree(self._one_by_one(), self.plain):
            raise ValueError(
                "base: expected the same features of the same image, found others in a second "
                f"pass of {type(self.model.model).__name__}"
            )
        if not self.tolerance.agree(self._together([0, 0]), self.plain):
            able = able.without("batch_rows").note("images share no batch, which changes them")
        return self._compare_merges(able) if self.modules else able

    def _compare_merges(self, able: Capabilities) -> Capabilities:
        """Compare experts in hooks with experts in the weights, and mixed batches with both."""
        hooked = []
        for candidate in self.pop:
            with merged(self.model.model, self.modules, candidate):
                hooked.append(self._one_by_one())
        if self.merger is not None:
            loaded = self._in_weights(self.merger)
            changes = [difference(one, self.plain) for one in (*hooked, *loaded)]
            if self.tolerance.allows(max(changes)):
                return able.note("the experts change no features of the images that were tried")
            if not all(map(self.tolerance.agree, hooked, loaded)):
                if self.tolerance.allows(max(changes[len(hooked) :])):
                    return able.without("merged").note("weights that change have no effect")
                return able.without("unmerged", "mix_candidates").note(
                    "experts in hooks give other features than in the weights, which are used"
                )
        if not able.batch_rows:
            return able
        with (
            merged(self.model.model, self.modules, self.pop) as population,
            self.model.candidates(population.select),
        ):
            mixed = self._together([0, 1])
        expected = torch.stack([hooked[0][0], hooked[1][1]])
        if not self.tolerance.agree(mixed, expected):
            if not able.merged or self.merger is None:
                raise ValueError(
                    "base: expected images of different candidates to share a batch, found that "
                    f"they change each other in {type(self.model.model).__name__}"
                )
            return able.without("unmerged", "mix_candidates").note(
                "candidates that share a batch change each other: merges go into the weights"
            )
        return able

    def _in_weights(self, merger: WeightMerger) -> list[torch.Tensor]:
        """The features `(2, D)` of both images, for each candidate in the weights."""
        found = []
        with merged_in_place(merger, self.pop) as candidates:
            for _ in candidates:
                found.append(self._one_by_one())
        return found

    def _one_by_one(self) -> torch.Tensor:
        """The features `(2, D)` of the images, a pass for each."""
        passes = [self.model.forward.features([0], image[None]) for image in self.images]
        return torch.cat(passes).float().cpu()

    def _together(self, candidates: Sequence[int]) -> torch.Tensor:
        """The same in one pass."""
        return self.model.forward.features(candidates, self.images).float().cpu()

    def _measure_rounding(self) -> float:
        """How far rounding moves the features."""
        with rounded_differently(self.model.model):
            moved = self._one_by_one()
        return max(difference(moved, self.plain), LEAST_ROUNDING)
