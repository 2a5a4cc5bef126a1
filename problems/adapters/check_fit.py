"""Check that experts fit together and fit a base model, so that their merge is exact.

Adapters are often found beside a base that only resembles theirs: another size, another vocabulary,
another release. Whatever of this can be seen in the files is refused with one sentence.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from evox_evogm.problems.adapters.read_adapter import Expert, describe, read_tensors


def check_together(experts: Sequence[Expert]) -> None:
    """Refuse an empty list, duplicate names, and experts that name different base models.

    :raises ValueError: one sentence saying which.
    """
    if not experts:
        raise ValueError("experts: expected at least one adapter folder, found none")
    name, times = Counter(expert.name for expert in experts).most_common(1)[0]
    if times > 1:
        folders = ", ".join(str(expert.folder) for expert in experts if expert.name == name)
        raise ValueError(
            f"experts: expected different names, found {name!r} {times} times ({folders}); "
            "give them names"
        )
    by_base = {_base_key(expert.base): expert for expert in experts if expert.base}
    if len(by_base) > 1:
        one, other = list(by_base.values())[:2]
        raise ValueError(
            f"expert {other.name!r}: expected the same base model as expert {one.name!r} "
            f"({one.base}), found {other.base}; merge only adapters of one base"
        )


def check_fit(experts: Sequence[Expert], model: torch.nn.Module, tokenizer=None) -> None:
    """Refuse experts whose modules, shapes, base or vocabulary are not those of the base model.

    :param model: the transformers model that the experts are merged into.
    :param tokenizer: its tokenizer, to compare with a tokenizer in an adapter's folder.
    :raises ValueError: one sentence saying which adapter, what was found and what to do.
    """
    base = getattr(model.config, "_name_or_path", "") or ""
    layers = dict(model.named_modules())
    for expert in experts:
        where = describe(expert.name, expert.folder)
        _check_base(expert, base, where)
        _check_modules(expert, layers, where)
        _check_base_copies(expert, layers, where)
        if tokenizer is not None:
            _check_vocabulary(expert, tokenizer, where)


def _check_base(expert: Expert, base: str, where: str) -> None:
    # A local folder may have any name, so that only two hub ids can contradict each other.
    if not _is_hub_id(expert.base) or not _is_hub_id(base):
        return
    if _base_key(expert.base) != _base_key(base):
        raise ValueError(
            f"{where}: expected an adapter of {base}, found one of {expert.base}; "
            "load that base instead"
        )


def _is_hub_id(base: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()


def _base_key(base: str) -> str:
    """The last part of a path or hub id: a local copy of a model often has the same one."""
    return re.split(r"[/\\]", base.rstrip("/\\"))[-1].lower()


def _check_modules(expert: Expert, layers: Mapping[str, torch.nn.Module], where: str) -> None:
    """Compare every module of the expert with the layer of that name."""
    for module, factors in expert.modules.items():
        layer = layers.get(module)
        expected = _inputs_and_outputs(layer, embedding=factors.embedding)
        if expected is None:
            kind = "no such module" if layer is None else f"a {type(layer).__name__}"
            raise ValueError(
                f"{where}: expected a Linear, Conv1D or Embedding layer {module!r} in the base, "
                f"found {kind}; the adapter belongs to another base model"
            )
        found = (factors.a.shape[1], factors.b.shape[0])
        if found != expected:
            reason = "it belongs to another base model"
            if factors.embedding:
                reason = "its vocabulary differs"
            raise ValueError(
                f"{where}: expected (inputs, outputs) {expected} in {module}, "
                f"found {found}; {reason}"
            )


def _inputs_and_outputs(
    layer: torch.nn.Module | None, *, embedding: bool
) -> tuple[int, int] | None:
    """`(D_in, D_out)` of a layer that such factors can change, or None of any other."""
    from transformers.pytorch_utils import Conv1D

    if embedding:
        if isinstance(layer, torch.nn.Embedding):
            return layer.num_embeddings, layer.embedding_dim
    elif isinstance(layer, torch.nn.Linear):
        return layer.in_features, layer.out_features
    elif isinstance(layer, Conv1D):
        inputs, outputs = layer.weight.shape
        return inputs, outputs
    return None


def _check_base_copies(expert: Expert, layers: Mapping[str, torch.nn.Module], where: str) -> None:
    """Compare the copies of base layers in the expert's file with the layers of this base."""
    if not expert.base_copies:
        return
    tensors = read_tensors(expert.folder, where)
    for name in expert.base_copies:
        copied = tensors[f"base_model.model.{name}.base_layer.weight"]
        own = getattr(layers.get(name), "weight", None)
        if not isinstance(own, torch.Tensor):  # a container, or no module of the base
            own = torch.empty(0)
        own = own.detach().to("cpu", torch.float32)
        # The tolerance is that of bfloat16, in which the copy or the base may have been stored.
        if copied.shape != own.shape or not torch.allclose(copied, own, rtol=1e-2, atol=1e-4):
            raise ValueError(
                f"{where}: expected the saved copy of {name} to equal the base, "
                "found other weights; train the adapter without changing the vocabulary"
            )


def _check_vocabulary(expert: Expert, tokenizer, where: str) -> None:
    """Compare a tokenizer in the expert's folder with the base's."""
    from tokenizers import Tokenizer

    path = expert.folder / "tokenizer.json"
    if not path.is_file():
        return
    try:
        own = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(
            f"{where}: expected a tokenizer in tokenizer.json, found {error}"
        ) from error
    vocabulary = tokenizer.get_vocab()
    if own != vocabulary:
        differing = len(set(own.items()) ^ set(vocabulary.items()))
        raise ValueError(
            f"{where}: expected the vocabulary of the base, "
            f"found a tokenizer that differs in {differing} tokens; "
            "use the base that this adapter was trained on"
        )
