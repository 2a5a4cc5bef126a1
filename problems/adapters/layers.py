"""What adapters can change in a base: the weights of layers, and parameters of other modules."""

import torch


def is_layer(module: torch.nn.Module | None) -> bool:
    """Whether an adapter can have the factors of a module."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (torch.nn.Embedding, torch.nn.Linear, Conv1D))


def inputs_and_outputs(
    module: torch.nn.Module | None, *, embedding: bool
) -> tuple[int, int] | None:
    """`(D_in, D_out)` of a layer, or None of what such factors cannot change.

    :param embedding: whether the factors are those of an embedding.
    """
    from transformers.pytorch_utils import Conv1D

    if embedding:
        if isinstance(module, torch.nn.Embedding):
            return module.num_embeddings, module.embedding_dim
    elif isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    elif isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return inputs, outputs
    return None


def split_name(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    """The module that holds a layer or a parameter, and the last part of its name."""
    holder, _, last = name.rpartition(".")
    return model.get_submodule(holder), last


def weight_of(model: torch.nn.Module, name: str) -> torch.Tensor:
    """The weight of a layer, or the parameter of that name."""
    holder, last = split_name(model, name)
    found = getattr(holder, last)
    weight = found if isinstance(found, torch.Tensor) else found.weight
    assert isinstance(weight, torch.Tensor), f"{name} has no weight"
    return weight


def keeps_inputs_first(model: torch.nn.Module, name: str) -> bool:
    """Whether a weight ends in `(D_in, D_out)`, not in `(D_out, D_in)`.

    Conv1D and embeddings keep it so, and some mixtures of experts their parameters.

    :param name: of a layer or of a parameter.
    """
    holder, last = split_name(model, name)
    found = getattr(holder, last)
    if isinstance(found, torch.Tensor):
        return found.ndim == 3 and bool(getattr(holder, "is_transposed", False))
    return not isinstance(found, torch.nn.Linear)
