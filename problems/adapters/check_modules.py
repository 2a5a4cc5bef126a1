"""Compare the modules of an adapter, and its copies of the base's weights, with a base."""

import re
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import torch

from evox_evogm.problems.adapters.layers import inputs_and_outputs
from evox_evogm.problems.adapters.read_adapter import Expert, Factors, read_tensors
from evox_evogm.problems.adapters.tensor_names import BIAS, explain_module
from evox_evogm.problems.adapters.vocabulary import VocabularyDifference, rows_fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OTHER_BASE = "the adapter belongs to another base model"
# Of a copy of the base's weights. It, or the base, may have been stored in bfloat16.
RTOL = 1e-2
ATOL = 1e-4


def fit_modules(
    expert: Expert, model: "PreTrainedModel", difference: VocabularyDifference, where: str
) -> dict[str, Factors]:
    """Compare every module of an expert with the layer of that name.

    :param difference: between the vocabularies of the adapter and the base.
    :param where: the adapter as error messages name it.
    :return: the factors, without rows of a padding token that the base does not have.
    :raises ValueError: if the base has no such layer, or one of another shape.
    """
    layers = dict(model.named_modules())
    fitting = {}
    for name, factors in expert.modules.items():
        layer = layers.get(name)
        expected = inputs_and_outputs(layer, embedding=factors.embedding)
        if factors.is_parameter:  # compared when it was given its name
            fitting[name] = factors
            continue
        if expected is None:
            _refuse_module(name, factors, model, where)
        if is_vocabulary(layer, model):
            factors = _without_new_rows(factors, expected, difference)
        found = (factors.a.shape[1], factors.b.shape[0])
        if found != expected:
            same_width = found[factors.embedding] == expected[factors.embedding]
            reason = "it belongs to another base model"
            if is_vocabulary(layer, model) and same_width:
                reason = "its vocabulary differs"
            raise ValueError(
                f"{where}: expected (inputs, outputs) {expected} in {name}, found {found}; {reason}"
            )
        fitting[name] = factors
    return fitting


def is_vocabulary(layer: torch.nn.Module | None, model: "PreTrainedModel") -> bool:
    """Whether a layer has a row for every token: the embedding or the output layer."""
    if layer is None:
        return False
    try:
        inputs = model.get_input_embeddings()
    except NotImplementedError:  # of a model of images that has none
        inputs = None
    return layer is inputs or layer is model.get_output_embeddings()


def _without_new_rows(
    factors: Factors, expected: tuple[int, int], difference: VocabularyDifference
) -> Factors:
    """The factors of an embedding or output layer without rows that may be left out."""
    inputs, outputs = expected
    if factors.embedding:
        rows = factors.a.shape[1]
        if rows > inputs and rows_fit(rows, inputs, difference):
            return replace(factors, a=factors.a[:, :inputs])
    elif len(factors.b) > outputs and rows_fit(len(factors.b), outputs, difference):
        return replace(factors, b=factors.b[:outputs])
    return factors


def _refuse_module(name: str, factors: Factors, model: "PreTrainedModel", where: str) -> NoReturn:
    """Say why a base has no layer for the factors of a module."""
    layers = dict(model.named_modules())
    if name in layers:
        found = f"a {type(layers[name]).__name__}; {OTHER_BASE}"
    else:
        found = f"no such module; {_explain_missing(name, factors, model)}"
    raise ValueError(
        f"{where}: expected a Linear, Conv1D or Embedding layer {name!r} in the base, found {found}"
    )


def _explain_missing(name: str, factors: Factors, model: "PreTrainedModel") -> str:
    """Why a base may have no module of a name."""
    wrapped = explain_module(name)
    if wrapped is not None:
        return f"the name is one {wrapped}"
    twin = _find_twin(name, factors, model)
    if twin is None:
        return OTHER_BASE
    trained_on = "another class of this model, a text-only or a multimodal one"
    if twin.endswith(f".{name}"):
        missing = twin.removesuffix(name)
        trained_on = f"a model without {missing!r} in its names, as AutoModel loads it"
    return (
        f"the base has {twin!r}: the adapter was trained on {trained_on}, "
        f"and plain peft does not load it on {type(model).__name__}"
    )


def _find_twin(name: str, factors: Factors, model: "PreTrainedModel") -> str | None:
    """A layer that fits the factors, whose name ends like the module's from its number on."""
    numbered = re.search(r"[^.]+\.\d+\..+", name)
    if numbered is None:
        return None
    shape = (factors.a.shape[-1], factors.b.shape[-2])
    for layer_name, layer in model.named_modules():
        ends_alike = f".{layer_name}".endswith(f".{numbered[0]}")
        if ends_alike and inputs_and_outputs(layer, embedding=False) == shape:
            return layer_name
    return None


def check_base_copies(
    expert: Expert, model: "PreTrainedModel", difference: VocabularyDifference, where: str
) -> bool:
    """Compare the copies of base layers in an expert's file with the layers of the base.

    :param difference: between the vocabularies of the adapter and the base.
    :param where: the adapter as error messages name it.
    :return: whether a copy has a row for a padding token that the base does not have.
    :raises ValueError: if a copy differs, or the base has no such layer.
    """
    if not expert.base_copies:
        return False
    layers = dict(model.named_modules())
    tensors = read_tensors(expert.folder, where)
    more_rows = False
    for name, key in expert.base_copies.items():
        copied = tensors[key]
        layer = layers.get(name.removesuffix(BIAS))
        own = _tensor_or_nothing(layer, "bias" if name.endswith(BIAS) else "weight")
        may_be_longer = is_vocabulary(layer, model) and copied.ndim == own.ndim > 0
        if may_be_longer and len(copied) > len(own):
            if rows_fit(len(copied), len(own), difference):
                copied = copied[: len(own)]
            more_rows = True
        if copied.shape != own.shape or not torch.allclose(copied, own, rtol=RTOL, atol=ATOL):
            raise ValueError(
                f"{where}: expected the saved copy of {name} to equal the base, "
                "found other weights; train the adapter without changing the vocabulary"
            )
    return more_rows


def _tensor_or_nothing(layer: torch.nn.Module | None, last: str) -> torch.Tensor:
    """The weight or bias of a layer in float32 on the CPU; an empty tensor of anything else."""
    found = getattr(layer, last, None)
    if not isinstance(found, torch.Tensor):  # of a container, or no module of the base
        return torch.empty(0)
    return found.detach().to("cpu", torch.float32)
