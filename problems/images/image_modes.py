"""The mode in which merges of image models are scored, by a count of multiplications.

Images have many tokens, and the hooks of the unmerged mode cost every one of them something. So
merges mostly go into the weights, except where images are few and small, so that those of several
merges fill a batch that one merge would not.
"""

import logging
from collections.abc import Mapping, Sequence

from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.images.image_task import ImageTask
from evox_evogm.problems.inference.batching import is_projection, width_of
from evox_evogm.problems.tasks.task import Task

log = logging.getLogger(__name__)


def mode_by_count(
    model: ImageModel,
    modules: Mapping[str, StackedModule],
    tasks: Sequence[Task],
    candidates: int,
) -> str:
    """The mode that takes fewer multiplications for P merges, which is logged.

    :param modules: the stacked experts.
    :param tasks: those of images count.
    :param candidates: P.
    """
    of_images = [task for task in tasks if isinstance(task, ImageTask)]
    counts = count_by_mode(model, modules, of_images, candidates)
    mode = "merged" if counts["merged"] < counts["unmerged"] else "unmerged"
    log.info(
        "images: %s; multiplications expected for %d candidates: unmerged %.3g, merged %.3g",
        mode,
        candidates,
        counts["unmerged"],
        counts["merged"],
    )
    return mode


def count_by_mode(
    model: ImageModel,
    modules: Mapping[str, StackedModule],
    tasks: Sequence[ImageTask],
    candidates: int,
) -> dict[str, float]:
    """About how many multiplications it takes to score P merges, by mode.

    :param modules: the stacked experts.
    :param tasks: whose images are scored.
    :param candidates: P.
    """
    base = 0  # of a token
    for module in model.model.modules():
        if is_projection(module):
            inputs, outputs = width_of(module)
            base += inputs * outputs
    in_hooks = in_weights = 0
    for stacked in modules.values():
        inputs, outputs = stacked.a.shape[-1], stacked.b.shape[-2]
        in_hooks += stacked.rank * (inputs + outputs)
        in_weights += stacked.rank * inputs * outputs
    counts = {"unmerged": 0.0, "merged": float(candidates * in_weights)}
    pass_tokens = model.batch_sizes.pass_tokens
    for task in tasks:
        images, tokens = len(task.examples), model.tokens_of(task.image_shape)
        size = model.images_of_pass(task.image_shape)
        of_all = candidates * images * tokens
        together = -(-candidates * images // size)  # passes
        apart = candidates * -(-images // size)
        counts["unmerged"] += of_all * (base + in_hooks) + together * pass_tokens * base
        counts["merged"] += of_all * base + apart * pass_tokens * base
    return counts
