"""One forward pass of a causal language model over a batch of rows.

The output layer runs on the scored positions only. Each row may belong to another candidate, and
layers that all candidates have in common run once for rows of the same tokens.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

import torch

from evox_evogm.problems.inference.fused_norms import (
    WrittenOutNorm,
    find_written_out_norms,
    fused_norms,
)
from evox_evogm.problems.inference.shared_layers import lower_layers_once
from evox_evogm.problems.inference.static_steps import StaticUse
from evox_evogm.problems.to_device import to_device

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# Takes the candidate of each row of a batch, and the rows that the output layer will see; None if
# these are the same.
Select = Callable[[Sequence[int], torch.Tensor | None], None]
CACHE_ARGUMENTS = ("past_key_values", "cache_params")


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
        self.give_positions = True  # whether the model is given a mask and positions
        self.fuse_norms = False  # whether RMSNorms run as one kernel each
        self.arguments = arguments_of(model)
        self.cache_argument = find_cache_argument(model)
        self.is_compiled = is_compiled(model)
        self.growing_ropes = find_growing_ropes(model)
        self.written_out_norms: list[WrittenOutNorm] = []  # as far as they were looked for
        self.static_use = StaticUse()

    @property
    def device(self) -> torch.device:
        """Where the tokens of a pass have to be."""
        return self.model.device

    def find_norms(self) -> list[WrittenOutNorm]:
        """Look for RMSNorms that one kernel can compute, once."""
        if not self.written_out_norms and not self.is_compiled:
            self.written_out_norms = find_written_out_norms(self.model)
        return self.written_out_norms

    def for_candidates(self, select: Select, shared_layers: int) -> "Forward":
        """The same pass for other candidates."""
        other = copy.copy(self)
        other.select = select
        other.shared_layers = shared_layers
        return other

    def new_cache(self) -> "Cache":
        """An empty cache for the states of this model.

        :raises ValueError: if the model takes no cache.
        """
        from transformers import DynamicCache

        if self.cache_argument is None:
            raise ValueError(f"{type(self.model).__name__} takes no cache")
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
        self.static_use.passes += 1
        output_rows, wanted = last_positions(width, scored, target_offset)
        all_wanted = len(wanted) == rows * width
        if self.select is not None:
            one_each = all(count == 1 for count in scored)
            of_output = None if one_each else torch.tensor(output_rows, dtype=torch.int64)
            self.select(candidates, of_output)
        lower_layers: AbstractContextManager[None] = nullcontext()
        if self.shared_layers and cache is None:
            different, which = torch.stack([tokens, mask]).unique(dim=1, return_inverse=True)
            if different.shape[1] < rows:
                tokens, mask = different
                lower_layers = lower_layers_once(self.model, self.shared_layers, which)
        given = {"input_ids": tokens, "use_cache": cache is not None}
        if self.give_positions:
            # Recurrent layers see the tokens of this pass only, attention also those before it.
            recurrent = self.cache_argument == "cache_params"
            given["attention_mask"] = mask[:, -width:] if recurrent else mask
            given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -width:]
        if self.cache_argument is not None:
            given[self.cache_argument] = cache
        output_layer: AbstractContextManager[None] = nullcontext()
        if not all_wanted:  # such as of a step, which then waits for nothing
            places = to_device(torch.tensor(wanted, dtype=torch.int64), self.device)
            output_layer = output_layer_on(self.model, places)
        with output_layer, lower_layers:
            logits = self.run_model(given).logits
        if logits.ndim == 3:
            logits = logits.flatten(0, 1)
            if not all_wanted:  # the output layer runs somewhere else
                logits = logits[places.to(logits.device)]
        return logits.to(self.device)  # the output layer may be on another one

    def run_model(self, given: dict[str, Any]):
        """Call the model with those arguments that it takes; its output.

        - What was compiled in place runs as it was before, because compiled code ignores hooks.
        - A RoPE that grows with the longest row so far begins at its original context.
        """
        taken = {}
        for name, value in given.items():
            if self.arguments is None or name in self.arguments:
                taken[name] = value
        for rope in self.growing_ropes:
            reset_rope(rope)
        # What a derivative computes again, outside of this call, has to be computed as it was here.
        if self.fuse_norms and not torch.is_grad_enabled():
            with fused_norms(self.written_out_norms):
                return self.model(**taken)
        if not self.is_compiled:
            return self.model(**taken)
        with torch.compiler.set_stance("force_eager"):
            return self.model(**taken)


def arguments_of(model: "PreTrainedModel") -> set[str] | None:
    """The names of the arguments of a pass, or None if it takes any."""
    parameters = signature(type(model).forward).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return set(parameters)


def find_cache_argument(model: "PreTrainedModel") -> str | None:
    """The name under which a pass takes its cache, or None if it takes none."""
    parameters = signature(type(model).forward).parameters
    for name in CACHE_ARGUMENTS:
        if name in parameters:
            return name
    return None


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether torch.compile was applied to a model in place, or to a part of it."""
    for module in model.modules():
        if module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule":
            return True
        if hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable"):
            return True
    return False


def find_growing_ropes(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules whose rotary frequencies change with the longest row so far."""
    found = []
    for module in model.modules():
        rope_types = getattr(module, "rope_type", ())
        if isinstance(rope_types, dict):
            rope_types = rope_types.values()
        elif isinstance(rope_types, str):
            rope_types = [rope_types]
        if any("dynamic" in rope_type for rope_type in rope_types):
            found.append(module)
    return found


def reset_rope(rope: torch.nn.Module) -> None:
    """Give a RoPE the frequencies of its original context, as after loading."""
    for name, original in list(rope.named_buffers(recurse=False)):
        if not name.endswith("original_inv_freq"):
            continue
        prefix = name.removesuffix("original_inv_freq")  # the type of the layers, if there are two
        # A copy, because transformers writes some frequencies in place.
        setattr(rope, f"{prefix}inv_freq", original.clone())
        if hasattr(rope, f"{prefix}max_seq_len_cached"):
            setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)


def last_positions(
    width: int, scored: Sequence[int], target_offset: int
) -> tuple[list[int], list[int]]:
    """The rows of the Q scored positions in a batch, and their places in it, row after row.

    :param width: the tokens of each row.
    :param scored: how many positions of each row.
    :param target_offset: how many positions at the end of each row follow them.
    """
    rows: list[int] = []
    places: list[int] = []
    for row, count in enumerate(scored):
        end = (row + 1) * width - target_offset
        rows += [row] * count
        places += range(end - count, end)
    return rows, places


@contextmanager
def output_layer_on(model: "PreTrainedModel", places: torch.Tensor) -> Iterator[None]:
    """Inside the block the output layer runs on some positions only.

    :param places: a `(Q,)` tensor of places in the last layer's output `(N, C, D)`, row after row.
    """

    def select_places(_, inputs):
        hidden = inputs[0].flatten(0, 1)  # (N C, D)
        return (hidden[places.to(hidden.device)], *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select_places)
    try:
        yield
    finally:
        handle.remove()
