"""Read a LoRA adapter in PEFT format: per module, the factors of tau = s B A.

`adapter_config.py` reads its settings; this file reads its tensors. Every tensor that is no factor
of such a product is refused with one sentence, because the merge would silently leave it out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from evox_evogm.problems.adapters.adapter_config import (
    CONFIG,
    LoraSettings,
    rank_and_alpha,
    read_config,
)

WEIGHTS = "adapter_model.safetensors"
TENSOR_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?"
)
# peft saves the frozen weights of embeddings and output layers that an adapter targets.
BASE_COPY = re.compile(r"base_model\.model\.(?P<layer>.+)\.base_layer\.weight")


@dataclass(frozen=True)
class Factors:
    """One module of one expert: tau = s B A.

    :param a: A, an `(r, D_in)` tensor. D_in of an embedding is the size of the vocabulary.
    :param b: B, a `(D_out, r)` tensor.
    :param scale: s.
    :param embedding: whether the module is an embedding.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    embedding: bool


@dataclass(frozen=True)
class Expert:
    """A LoRA adapter.

    :param name: shown in messages and reports.
    :param folder: where the adapter was read.
    :param base: the base model that the adapter names, empty if it names none.
    :param modules: the factors by module name.
    :param base_copies: layers of the base of which the adapter's file holds a copy.
    """

    name: str
    folder: Path
    base: str
    modules: dict[str, Factors]
    base_copies: tuple[str, ...] = ()


def read_expert(folder, *, name: str | None = None) -> Expert:
    """Read a PEFT adapter folder (`adapter_config.json` and `adapter_model.safetensors`).

    :param folder: the adapter's folder.
    :param name: of the expert. Defaults to the folder's name.
    :return: the expert, its tensors in float32 on the CPU.
    :raises ValueError: one sentence saying which adapter, what was found and what to do.
    """
    folder = Path(folder)
    name = name or folder.name
    where = describe(name, folder)
    if not folder.is_dir():
        raise ValueError(
            f"{where}: expected a folder with {CONFIG} and {WEIGHTS}, found no such folder"
        )
    settings = read_config(folder, where)
    pairs: dict[str, dict[str, torch.Tensor]] = {}  # by module, lora_A and lora_B
    embeddings = set()
    base_copies = []
    for key, tensor in read_tensors(folder, where).items():
        copied = BASE_COPY.fullmatch(key)
        if copied:
            base_copies.append(copied["layer"])
            continue
        factor = _check_factor(key, tensor, where)
        pairs.setdefault(factor["module"], {})[factor["factor"]] = tensor
        if factor["embedding"]:
            embeddings.add(factor["module"])
    if not pairs:
        raise ValueError(f"{where}: expected LoRA tensors in {WEIGHTS}, found none")
    modules = {}
    for module in sorted(pairs):
        modules[module] = _make_factors(
            module, pairs[module], settings, where, embedding=module in embeddings
        )
    return Expert(name, folder, settings.base, modules, tuple(base_copies))


def describe(name: str, folder: Path) -> str:
    """An adapter as error messages name it."""
    return f"expert {name!r} ({folder})"


def read_tensors(folder: Path, where: str) -> dict[str, torch.Tensor]:
    """All tensors of an adapter's weight file.

    :param folder: the adapter's folder.
    :param where: the adapter as error messages name it.
    :return: the tensors by name, in float32 on the CPU.
    :raises ValueError: if there is no such file, or none that holds floating-point tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(
            f"{where}: expected {WEIGHTS}, found {_other_weights(folder)}; "
            "save it with safe_serialization=True"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{where}: expected {WEIGHTS} in safetensors format, found {error}"
        ) from error
    converted = _to_float32(tensors)
    if converted is None:
        dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
        raise ValueError(
            f"{where}: expected weights in float32, bfloat16, float16 or the like, "
            f"found {', '.join(sorted(dtypes))}"
        )
    return converted


def _check_factor(key: str, tensor: torch.Tensor, where: str) -> re.Match[str]:
    """The module and the factor that a tensor's name stands for."""
    match = TENSOR_NAME.fullmatch(key)
    if not match:
        raise ValueError(
            f"{where}: expected only lora_A and lora_B tensors, found {key!r}; "
            "save the adapter as plain LoRA"
        )
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"{where}: expected finite weights, found NaN or infinity in {key!r}; "
            "use an earlier checkpoint"
        )
    return match


def _make_factors(
    module: str,
    pair: Mapping[str, torch.Tensor],
    settings: LoraSettings,
    where: str,
    *,
    embedding: bool,
) -> Factors:
    """The factors of a module from its lora_A and lora_B."""
    if set(pair) != {"A", "B"}:
        raise ValueError(
            f"{where}: expected lora_A and lora_B for {module}, found only lora_{''.join(pair)}"
        )
    a, b = pair["A"], pair["B"]
    rank, alpha = rank_and_alpha(settings, module, where)
    matrices = a.ndim == b.ndim == 2
    if not matrices or a.shape[0] != b.shape[1] or a.shape[0] != rank:
        raise ValueError(
            f"{where}: expected rank {rank} in {module}, "
            f"found lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}; "
            f"{CONFIG} and {WEIGHTS} do not belong together"
        )
    return Factors(a, b, settings.scale(rank, alpha), embedding)


def _other_weights(folder: Path) -> str:
    """What a folder holds in place of a weight file in safetensors format."""
    pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
    if not pickles:
        return "none"
    return f"only {pickles[0].name}, a pickle that is not read because it can run code"


def _to_float32(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The tensors in float32, or None if torch cannot compute with one of them."""
    converted = {}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            return None
        try:
            converted[key] = tensor.to(torch.float32)
        except RuntimeError:  # of formats that torch stores but does not compute with
            return None
    return converted
