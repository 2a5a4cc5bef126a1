"""An image model as scored tasks use it: pooled features of images, in shared batches."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.images.heads import CLASSIFIER
from evox_evogm.problems.inference.batch_sizes import BATCH_TOKENS, BatchSizes
from evox_evogm.problems.inference.batching import is_projection, width_of
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.free_memory import MAX_MEMORY
from evox_evogm.problems.inference.scored_model import ScoredModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ACCELERATOR_TOKENS = 65_536  # of a pass that nobody gave a size, not on a CPU
PATCH = 16  # pixels of an edge, where a configuration does not say it


class ImageForward(Forward):
    """Forward passes of an image model, without its own classifier."""

    @torch.no_grad()
    def features(self, candidates: Sequence[int], images: torch.Tensor) -> torch.Tensor:
        """Pooled features `(N, D)` of N images.

        They are what enters the classifier of a model that has one. Of another one they are its
        pooled output, or its first token where it does not pool.

        :param candidates: for each image the candidate it is for.
        :param images: an `(N, channels, height, width)` tensor.
        """
        return self._features(candidates, images)

    @torch.enable_grad()
    def features_to_differentiate(
        self, candidates: Sequence[int], images: torch.Tensor
    ) -> torch.Tensor:
        """The same, recorded for a backward pass."""
        return self._features(candidates, images)

    def _features(self, candidates: Sequence[int], images: torch.Tensor) -> torch.Tensor:
        if self.select is not None:
            self.select(candidates, torch.arange(len(candidates)))
        given = {"pixel_values": images.to(self.device, self.model.dtype)}
        classifier = getattr(self.model, CLASSIFIER, None)
        if classifier is None:
            output = self.run_model(given)
            pooled = getattr(output, "pooler_output", None)
            return (output.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)
        entered = []
        handle = classifier.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        try:
            self.run_model(given)
        finally:
            handle.remove()
        return entered[0].flatten(1)


class ImageModel(ScoredModel):
    """An image model.

    :param model: of `AutoModelForImageClassification` or `AutoModel`, in evaluation mode.
    :param batch_tokens: the most patches in one forward pass. Defaults to 2,048 on a CPU, and to
        65,536 elsewhere.
    :param max_memory: bytes that a forward pass may take beyond the model, as estimated. A single
        image may take more.
    """

    forward: ImageForward

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        batch_tokens: int | BatchSizes | str | None = None,
        max_memory: int = MAX_MEMORY,
    ):
        super().__init__(
            model,
            ImageForward(model),
            batch_sizes=batches_of_images(batch_tokens, model.device),
            max_memory=max_memory,
            capabilities=Capabilities(),
        )

    def tokens_of(self, shape: Sequence[int]) -> int:
        """About how many tokens an image becomes: its patches and one more.

        :param shape: channels, height and width.
        """
        patch = getattr(self.model.config, "patch_size", None)
        edges = list(patch) if isinstance(patch, (list, tuple)) else [patch or PATCH] * 2
        return max(1, shape[1] // edges[0]) * max(1, shape[2] // edges[-1]) + 1

    def features(
        self,
        images: Sequence[torch.Tensor],
        candidates: Sequence[int],
        differentiate: bool = False,
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Pooled features of images of one shape, batch after batch.

        :param images: N tensors `(channels, height, width)`.
        :param candidates: for each its candidate.
        :param differentiate: whether passes are recorded for `derivatives_of`.
        :return: the numbers of the images of a batch, and their features `(rows, D)`.
        """
        size = self.images_of_pass(images[0].shape, differentiate)
        forward = self.forward
        run = forward.features_to_differentiate if differentiate else forward.features
        for start in range(0, len(images), size):
            rows = list(range(start, min(start + size, len(images))))
            batch = torch.stack([images[row] for row in rows])
            yield rows, run([candidates[row] for row in rows], batch)

    def images_of_pass(self, shape: Sequence[int], differentiate: bool = False) -> int:
        """How many images share a pass."""
        if not self.capabilities.batch_rows:
            return 1
        tokens = self.tokens_of(shape)
        memory = tokens * bytes_of_token(self.model, differentiate=differentiate)
        return max(1, min(self.batch_tokens // tokens, self.max_memory // memory))


def batches_of_images(batch_tokens: int | BatchSizes | str | None, device) -> BatchSizes:
    """How large passes are, by the argument `batch_tokens` of `LoRAMergeProblem`.

    :param device: of the model.
    """
    if isinstance(batch_tokens, BatchSizes):
        return batch_tokens
    if isinstance(batch_tokens, int):
        return BatchSizes(batch_tokens)
    return BatchSizes(BATCH_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS)


def bytes_of_token(model: torch.nn.Module, *, differentiate: bool) -> int:
    """Bytes that a forward pass takes of each token, as estimated.

    One layer is alive at a time, with a few tensors of its largest width. A backward pass needs the
    inputs and outputs of all projections, and about as much of norms and products.
    """
    widest, kept, itemsize = 1, 0, 4
    for module in model.modules():
        if is_projection(module):
            inputs, outputs = width_of(module)
            widest = max(widest, inputs, outputs)
            kept += inputs + outputs
            itemsize = module.weight.element_size()  # type: ignore[operator]
    return (8 * widest + (2 * kept if differentiate else 0)) * itemsize
