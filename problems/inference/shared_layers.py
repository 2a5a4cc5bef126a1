"""Layers below the first adapted one give the same for every candidate. They run once for all rows
of the same tokens.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.inference.capabilities import count_layers, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What decoder layers may be given beside the hidden states. It is known of each whether it has a
# row per text.
KNOWN_ARGUMENTS = {
    "self",
    "hidden_states",
    "attention_mask",
    "position_ids",
    "position_embeddings",
    "past_key_values",
    "use_cache",
    "cache_position",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "output_attentions",
    "kwargs",
}
PLAIN_ATTENTIONS = ("eager", "sdpa")  # their masks are tensors


def decoder_layers(model: "PreTrainedModel") -> tuple[str, torch.nn.ModuleList] | None:
    """The decoder layers of a causal LM with the name of their list.

    None if not exactly one list of modules has as many as the model has layers.
    """
    count = count_layers(model)
    found = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            found.append((name, module))
    return found[0] if len(found) == 1 else None


def count_shared_layers(model: "PreTrainedModel", adapted: Iterable[str]) -> int:
    """How many of the first decoder layers no expert touches, nor anything before them.

    0 if `lower_layers_once` cannot handle the model.

    :param adapted: names of the modules that experts touch.
    """
    found = decoder_layers(model)
    attention = getattr(text_config(model), "_attn_implementation", None)
    if found is None or attention not in PLAIN_ATTENTIONS:
        return 0
    name, layers = found
    arguments = signature(type(layers[0]).forward).parameters
    if not set(arguments) <= KNOWN_ARGUMENTS:
        return 0
    output = model.get_output_embeddings()
    shared = len(layers) - 1  # the last layer has to see all rows
    for module in adapted:
        if module.startswith(f"{name}."):
            layer = module.removeprefix(f"{name}.").split(".")[0]
            shared = min(shared, int(layer))
        elif model.get_submodule(module) is not output:  # an embedding, or something unknown
            return 0
    return shared


class RowExpander:
    """Repeats what U different rows have for all N rows.

    :param which: an `(N,)` tensor: for each of N rows, which of the U rows it is.
    """

    def __init__(self, which: torch.Tensor):
        self.which = which
        self.different = int(which.max()) + 1  # U
        # Every layer is given the same masks and positions, which are expanded once. The tensors
        # are kept too, so that no other one gets their id.
        self.expanded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, value):
        """A tensor of U rows with N rows, and tuples of such; anything else as it is."""
        if isinstance(value, tuple):
            return tuple(self(part) for part in value)
        if not isinstance(value, torch.Tensor):
            return value
        if value.ndim < 2 or len(value) != self.different:
            return value
        if id(value) not in self.expanded:
            self.expanded[id(value)] = value, value[self.which.to(value.device)]
        return self.expanded[id(value)][1]


@contextmanager
def lower_layers_once(model: "PreTrainedModel", first: int, which: torch.Tensor) -> Iterator[None]:
    """Inside the block the model takes the U different rows of a batch and gives N outputs.

    :param first: the number of decoder layers that see U rows. Those from there on see N.
    :param which: an `(N,)` tensor: for each row of the output, which of the U rows it is.
    """
    found = decoder_layers(model)
    assert found is not None, "lower_layers_once: this model has no plain list of decoder layers"
    _, layers = found
    expand = RowExpander(which)

    def expand_all(layer, inputs, named):
        new_named = {name: expand(value) for name, value in named.items()}
        return expand(inputs), new_named

    def expand_all_but_hidden_states(layer, inputs, named):
        new_named = {}
        for name, value in named.items():
            new_named[name] = value if name == "hidden_states" else expand(value)
        return inputs[:1] + expand(inputs[1:]), new_named

    handles = []
    for index, layer in enumerate(layers):
        if index >= first:
            hook = expand_all if index == first else expand_all_but_hidden_states
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
