"""One forward pass of a causal language model over a batch of rows.

The output layer runs on the scored positions only. Each row may belong to another candidate, and
layers that all candidates have in common run once for rows of the same tokens.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.inference.shared_layers import lower_layers_once

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# Takes the candidate of each row of a batch, and the rows that the output layer will see.
Select = Callable[[Sequence[int], torch.Tensor], None]


class Forward:
    """A callable that makes one forward pass.

    :param model: a transformers causal LM, in evaluation mode.
    :param select: called before each pass with the candidate of each row; None if all rows belong
        to the model as it is.
    :param shared_layers: how many of the first decoder layers are the same for all candidates.
    """

    def __init__(
        self, model: "PreTrainedModel", select: Select | None = None, shared_layers: int = 0
    ):
        self.model = model
        self.select = select
        self.shared_layers = shared_layers

    @property
    def device(self) -> torch.device:
        """Where the tokens of a pass have to be."""
        return self.model.device

    def for_candidates(self, select: Select, shared_layers: int) -> "Forward":
        """The same pass for other candidates."""
        other = copy.copy(self)
        other.select = select
        other.shared_layers = shared_layers
        return other

    def new_cache(self) -> "Cache":
        """An empty cache for the keys and values of this model."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def __call__(
        self,
        candidates: Sequence[int],
        tokens: torch.Tensor,
        mask: torch.Tensor,
        scored: Sequence[int],
        cache: "Cache | None" = None,
        target_offset: int = 0,
    ) -> torch.Tensor:
        """Logits `(Q, V)` of the last positions of each row, row after row.

        :param candidates: for each of N rows the candidate it belongs to.
        :param tokens: an `(N, C)` tensor.
        :param mask: an `(N, cached + C)` tensor, 0 at the padding.
        :param scored: at how many positions of each row logits are needed; Q together.
        :param cache: of the earlier positions. The pass adds its own.
        :param target_offset: how many positions at the end of each row follow the scored ones.
        """
        rows, width = tokens.shape
        counts = torch.tensor(scored)
        owners = torch.arange(rows).repeat_interleave(counts)  # (Q,)
        wanted = last_positions(width, scored, target_offset).to(self.device)
        if self.select is not None:
            self.select(candidates, owners)
        lower_layers: AbstractContextManager[None] = nullcontext()
        if self.shared_layers and cache is None:
            different, which = torch.stack([tokens, mask]).unique(dim=1, return_inverse=True)
            if different.shape[1] < rows:
                tokens, mask = different
                lower_layers = lower_layers_once(self.model, self.shared_layers, which)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -width:]
        with output_layer_on(self.model, wanted), lower_layers:
            output = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return output.logits


def last_positions(width: int, scored: Sequence[int], target_offset: int) -> torch.Tensor:
    """The places `(Q,)` of the scored positions in a batch of rows of `width` tokens, end to end.

    :param scored: how many positions of each row.
    :param target_offset: how many positions at the end of each row follow them.
    """
    places = []
    for row, count in enumerate(scored):
        end = (row + 1) * width - target_offset
        places.append(torch.arange(end - count, end))
    return torch.cat(places)


@contextmanager
def output_layer_on(model: "PreTrainedModel", places: torch.Tensor) -> Iterator[None]:
    """Inside the block the output layer runs on some positions only.

    :param places: a `(Q,)` tensor of places in the last layer's output `(N, C, D)`, row after row.
    """

    def select_places(_, inputs):
        hidden = inputs[0].flatten(0, 1)  # (N C, D)
        return (hidden[places], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select_places)
    try:
        yield
    finally:
        handle.remove()
