"""The keys and values of first tokens that several rows share: made once, copied to each row.

All states of a cache are copied and selected, also those of recurrent layers.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

import torch

from evox_evogm.problems.inference.batching import Batching
from evox_evogm.problems.inference.capabilities import text_config
from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.shared_prefixes import SharedPrefix

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# Settings of models whose attention is limited to a window over the columns.
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")


@dataclass(frozen=True)
class PrefixCache:
    """The keys and values of K prefixes.

    :param cache: a row per prefix.
    :param mask: a `(K, W)` tensor, 0 at the padding.
    """

    cache: "Cache"
    mask: torch.Tensor

    @property
    def width(self) -> int:
        """W, the cached tokens of each prefix, padding included."""
        return self.mask.shape[1]


def run_prefixes(
    prefixes: Sequence[SharedPrefix], forward: Forward, batching: Batching
) -> PrefixCache:
    """Make the pass over some prefixes, and keep what later positions need of it."""
    cache = forward.new_cache()
    tokens, mask = batching.pad_left([prefix.tokens for prefix in prefixes], forward.device)
    candidates = [prefix.candidate for prefix in prefixes]
    forward(candidates, tokens, mask, [0] * len(prefixes), cache)
    return PrefixCache(cache, mask)


def rows_of_cache(cache: "Cache", rows: torch.Tensor) -> "Cache":
    """A cache that holds some rows of another one, which stays as it is.

    All states of each layer are selected: keys and values, and those of recurrent layers.
    """
    part = copy_cache(cache)
    part.reorder_cache(cast(torch.LongTensor, rows))  # replaces the tensors of the copied layers
    return part


def copy_cache(cache: "Cache") -> "Cache":
    """A cache with the same tensors, to which later positions may be added in either."""
    copied = copy.copy(cache)
    copied.layers = [copy_layer(layer) for layer in cache.layers]
    return copied


def copy_layer(layer):
    """A layer of a cache with the same tensors, which may be replaced in either."""
    copied = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # the states of recurrent layers
            setattr(copied, name, dict(value))
    return copied


def join_caches(caches: Sequence["Cache"]) -> "Cache":
    """One cache with the rows of several, which hold as many positions each."""
    joined = copy_cache(caches[0])
    layers: list[Any] = list(joined.layers)
    for place, layer in enumerate(layers):
        parts: list[Any] = [cache.layers[place] for cache in caches]
        if layer.is_initialized:
            layer.keys = torch.cat([part.keys for part in parts])
            layer.values = torch.cat([part.values for part in parts])
    return joined


def may_join_caches(forward: Forward) -> bool:
    """Whether the rows of several caches may come into one: all layers hold keys and values."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if forward.cache_argument is None:
        return False
    layers = forward.new_cache().layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def may_pad_after_prefix(model: "PreTrainedModel", longest: int, max_new_tokens: int) -> bool:
    """Whether padding may stand between a prefix and the rest of a row.

    So the model has to take positions as they are given, and padding must not push tokens out of a
    window over the columns.

    :param longest: the number of tokens of the longest row.
    :param max_new_tokens: how many tokens will follow.
    """
    if "position_ids" not in signature(type(model).forward).parameters:
        return False
    columns = 2 * longest + max_new_tokens
    return all(columns <= window for window in windows_of(model))


def windows_of(model: "PreTrainedModel") -> list[int]:
    """The windows over the columns to which attention is limited in some layers."""
    config = text_config(model)
    windows = []
    for name in WINDOWS:
        window = getattr(config, name, None)
        if isinstance(window, int):
            windows.append(window)
    return windows
