"""Layers below the first adapted one give every candidate the same: they run once for rows that agree in their tokens."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import signature

import torch

# What decoder layers may be given beside the hidden states, so that it is plain which of it has a row per text.
KNOWN = {
    *(
        "self",
        "hidden_states",
        "attention_mask",
        "position_ids",
        "position_embeddings",
        "past_key_values",
        "use_cache",
    ),
    *(
        "cache_position",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "output_attentions",
        "kwargs",
    ),
}
ATTENTIONS = ("eager", "sdpa")  # whose masks are plain tensors


def decoder_layers(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList] | None:
    """The list of decoder layers of a transformers causal LM with its name, or None where it is not plain to see."""
    count = getattr(model.config, "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    return lists[0] if len(lists) == 1 else None


def count_shared_layers(model: torch.nn.Module, adapted: Iterable[str]) -> int:
    """How many of the first decoder layers, and all before them, no expert touches.

    :param adapted: names of the modules that experts touch.
    """
    found = decoder_layers(model)
    if found is None or getattr(model.config, "_attn_implementation", None) not in ATTENTIONS:
        return 0
    name, layers = found
    if not set(signature(type(layers[0]).forward).parameters) <= KNOWN:
        return 0
    output = model.get_output_embeddings()
    first = len(layers) - 1
    for module in adapted:
        if module.startswith(f"{name}."):
            first = min(first, int(module.removeprefix(f"{name}.").split(".")[0]))
        elif model.get_submodule(module) is not output:  # an embedding, or something unknown
            return 0
    return first


@contextmanager
def lower_layers_once(model: torch.nn.Module, first: int, rows: torch.Tensor) -> Iterator[None]:
    """Inside the block the model takes the U different rows of a batch and gives the outputs of all N.

    :param first: the number of decoder layers that see U rows; those from there on see N.
    :param rows: an `(N,)` tensor: for each row of the output, which of the U rows it is.
    """
    _, layers = decoder_layers(model)
    different = int(rows.max()) + 1
    expanded: dict[
        int, tuple[torch.Tensor, torch.Tensor]
    ] = {}  # masks and positions are the same objects in every layer

    def expand(value):
        if isinstance(value, tuple):
            return tuple(map(expand, value))
        if not isinstance(value, torch.Tensor) or value.ndim < 2 or len(value) != different:
            return value
        if id(value) not in expanded:
            expanded[id(value)] = value, value[rows]
        return expanded[id(value)][1]

    def enter(index):
        def hook(_, inputs, named):
            if index == first:
                return tuple(map(expand, inputs)), {
                    name: expand(value) for name, value in named.items()
                }
            hidden = {"hidden_states": named["hidden_states"]} if "hidden_states" in named else {}
            rest = {name: expand(value) for name, value in named.items() if name not in hidden}
            return (*inputs[:1], *map(expand, inputs[1:])), rest | hidden

        return hook

    handles = [
        layer.register_forward_pre_hook(enter(index), with_kwargs=True)
        for index, layer in enumerate(layers)
        if index >= first
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
