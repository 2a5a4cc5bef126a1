"""Forward passes of an encoder-decoder: the encoder once per prompt, the decoder per answer.

Each row may belong to another candidate. Prompts and answers are padded at their ends: the encoder
is told where, and what a decoder reads later changes nothing before it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from evox_evogm.problems.inference.forward import Forward, output_layer_on
from evox_evogm.problems.to_device import to_device

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


class Read(NamedTuple):
    """N rows of what an encoder made of prompts.

    :param states: an `(N, S, D)` tensor.
    :param mask: an `(N, S)` tensor, 0 at the padding.
    """

    states: torch.Tensor
    mask: torch.Tensor

    def rows(self, places: torch.Tensor) -> "Read":
        """Some rows, which may repeat."""
        return Read(self.states[places], self.mask[places])


class EncoderDecoderForward(Forward):
    """Callables that make passes of an encoder-decoder.

    :param model: a transformers model with `get_encoder`, in evaluation mode.
    """

    def __init__(self, model: "PreTrainedModel"):
        super().__init__(model)
        self.encoder: Any = model.get_encoder()

    def encode(self, candidates: Sequence[int], tokens: torch.Tensor, mask: torch.Tensor) -> Read:
        """Read N prompts.

        :param candidates: for each of N rows the candidate it belongs to.
        :param tokens: an `(N, S)` tensor.
        :param mask: an `(N, S)` tensor, 0 at the padding.
        """
        self._select(candidates, torch.arange(len(candidates)))
        output = self._call(self.encoder, {"input_ids": tokens, "attention_mask": mask})
        return Read(output.last_hidden_state, mask)

    def decode(
        self,
        candidates: Sequence[int],
        read: Read,
        tokens: torch.Tensor,
        scored: Sequence[int],
    ) -> torch.Tensor:
        """Logits `(Q, V)` of the first positions of each of N rows, row after row.

        :param read: the prompt of each row.
        :param tokens: an `(N, W)` tensor of what the decoder reads.
        :param scored: at how many positions of each row logits are needed; Q together.
        """
        from transformers.modeling_outputs import BaseModelOutput

        encoded = BaseModelOutput(last_hidden_state=read.states)
        given = {"encoder_outputs": encoded, "attention_mask": read.mask}
        return self._run(candidates, given, tokens, scored)

    def read_and_decode(
        self,
        candidates: Sequence[int],
        prompts: torch.Tensor,
        mask: torch.Tensor,
        tokens: torch.Tensor,
        scored: Sequence[int],
    ) -> torch.Tensor:
        """The same by one pass through encoder and decoder, which a derivative goes back through.

        :param prompts: an `(N, S)` tensor.
        :param mask: an `(N, S)` tensor, 0 at the padding.
        """
        given = {"input_ids": prompts, "attention_mask": mask}
        return self._run(candidates, given, tokens, scored)

    def step(
        self,
        candidates: Sequence[int],
        read: Read,
        tokens: torch.Tensor,
        cache: "Cache | None",
    ) -> "tuple[torch.Tensor, Cache]":
        """Logits `(N, V)` of the last position of each row, and the cache with this step.

        :param tokens: an `(N, W)` tensor of what the cache does not hold yet.
        :param cache: of what the decoder has read; None before the first step.
        """
        from transformers.modeling_outputs import BaseModelOutput

        rows, width = tokens.shape
        self._select(candidates, torch.arange(rows))
        given = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=read.states),
            "attention_mask": read.mask,
            "decoder_input_ids": tokens,
            "past_key_values": cache,
            "use_cache": True,
        }
        places = torch.arange(1, rows + 1, device=self.device) * width - 1
        with output_layer_on(self.model, places):
            output = self.run_model(given)
        return output.logits.view(rows, -1), output.past_key_values

    def _run(
        self,
        candidates: Sequence[int],
        given: dict[str, Any],
        tokens: torch.Tensor,
        scored: Sequence[int],
    ) -> torch.Tensor:
        rows, width = tokens.shape
        output_rows = torch.arange(rows).repeat_interleave(torch.tensor(scored))  # (Q,)
        self._select(candidates, output_rows)
        places = to_device(first_positions(width, scored), self.device)
        with output_layer_on(self.model, places):
            output = self.run_model({**given, "decoder_input_ids": tokens, "use_cache": False})
        return output.logits.view(len(places), -1)

    def _select(self, candidates: Sequence[int], output_rows: torch.Tensor) -> None:
        if self.select is not None:
            self.select(candidates, output_rows)

    def _call(self, module: torch.nn.Module, given: dict[str, Any]):
        """Call a part of the model; what was compiled in place runs as it was before."""
        if not self.is_compiled:
            return module(**given)
        with torch.compiler.set_stance("force_eager"):
            return module(**given)


def first_positions(width: int, scored: Sequence[int]) -> torch.Tensor:
    """The places `(Q,)` of the first positions in a batch of rows of `width` tokens, end to end.

    :param scored: how many positions of each row.
    """
    places = []
    for row, count in enumerate(scored):
        places.append(torch.arange(row * width, row * width + count))
    return torch.cat(places)


def pad_right(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `(N, C)` of N rows, and a mask `(N, C)` that is 0 at the padding."""
    width = max(len(row) for row in rows)
    tokens = []
    mask = []
    for row in rows:
        padding = width - len(row)
        tokens.append([*row, *[pad_id] * padding])
        mask.append([1] * len(row) + [0] * padding)
    return to_device(torch.tensor(tokens), device), to_device(torch.tensor(mask), device)
