"""Read a LoRA adapter in PEFT format: per module, the factors of tau = s B A.

`adapter_config.py` reads its settings; this file reads its tensors. Every tensor that is no factor
of such a product is refused with one sentence, because the merge would silently leave it out.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evox_evogm.near_path import near_path
from evox_evogm.problems.adapters.adapter_config import (
    CONFIG,
    WEIGHTS,
    LoraSettings,
    check_pattern_count,
    rank_and_alpha,
    read_config,
)
from evox_evogm.problems.adapters.find_adapters import find_adapter, name_of_source
from evox_evogm.problems.adapters.hub_source import shown_source, source_of_folder
from evox_evogm.problems.adapters.same_base import hub_id
from evox_evogm.problems.adapters.tensor_names import (
    COPY_NAME,
    FACTOR_NAME,
    PREFIX,
    SHARDED,
    check_one_adapter,
    explain_key,
)

if TYPE_CHECKING:
    from evox_evogm.problems.checkpoints.full_checkpoint import FullCheckpoint

STATE_OF_TRAINERS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")


@dataclass(frozen=True)
class Factors:
    """One module of one expert: tau = s B A.

    The experts of a mixture share one parameter of E matrices. There A and B have E in front.

    :param a: A, an `(r, D_in)` or `(E, r, D_in)` tensor. D_in of an embedding is the size of the
        vocabulary.
    :param b: B, a `(D_out, r)` or `(E, D_out, r)` tensor.
    :param scale: s.
    :param embedding: whether the module is an embedding.
    :param place: of a parameter, its place among those of its module; None of a layer.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    embedding: bool
    place: int | None = None

    @property
    def is_parameter(self) -> bool:
        """Whether the factors are those of a parameter, not of a layer."""
        return self.place is not None


@dataclass(frozen=True)
class Expert:
    """A LoRA adapter.

    :param name: shown in messages and reports.
    :param folder: where the adapter was read.
    :param base: the base model that the adapter names, empty if it names none.
    :param modules: the factors by module name: as the file has it, until `fit_experts` has found
        the name that the base has for it. Those of a parameter have the parameter's name.
    :param base_copies: layers of the base of whose weight the adapter's file holds a copy, each
        with the name of that tensor. Those of whose bias it holds one end in ".bias".
    :param settings: what the configuration says.
    :param checkpoint: the weights, of an expert that is a whole model; it has no modules then.
    """

    name: str
    folder: Path
    base: str
    modules: dict[str, Factors]
    base_copies: Mapping[str, str] = field(default_factory=dict)
    settings: LoraSettings | None = None
    checkpoint: "FullCheckpoint | None" = None


def read_expert(folder, *, name: str | None = None, heads: Collection[str] = ()) -> Expert:
    """Read a PEFT adapter (`adapter_config.json` and `adapter_model.safetensors`).

    :param folder: the adapter's folder, the output folder of a trainer, or a hub id, see
        `find_adapter`.
    :param name: of the expert. Defaults to the last part of the folder or hub id.
    :param heads: the modules that the adapter may hold whole (`modules_to_save`) and that are left
        out, because every task has its own. None for language models.
    :return: the expert, its tensors in float32 on the CPU.
    :raises ValueError: one sentence saying which adapter, what was found and what to do.
    """
    name = name or name_of_source(folder)
    where = describe(name, folder)
    folder = find_adapter(folder, where)
    if not folder.is_dir():
        advice = near_path(folder)
        if not advice and hub_id(str(folder)) is not None:
            advice = "; give a hub id as a str, not as a Path"
        raise ValueError(
            f"{where}: expected a folder with {CONFIG} and {WEIGHTS}, found no such folder{advice}"
        )
    settings = read_config(folder, where, heads=heads)
    tensors = without_heads(read_tensors(folder, where), heads)
    pairs, base_copies = _sort_tensors(tensors, where)
    check_pattern_count(settings, len(pairs), where)
    modules = {}
    for module in sorted(pairs):
        modules[module] = _make_factors(module, pairs[module], settings, where)
    return Expert(name, folder, settings.base, modules, base_copies, settings)


def describe(name: str, folder: Path | str) -> str:
    """An adapter as error messages name it."""
    source = source_of_folder(folder)
    return f"expert {name!r} ({folder if source is None else shown_source(source)})"


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


def without_heads(
    tensors: Mapping[str, torch.Tensor], heads: Collection[str]
) -> dict[str, torch.Tensor]:
    """The tensors of an adapter that do not belong to heads that it holds whole.

    :param tensors: by name.
    :param heads: names of modules.
    """
    of_heads = set()
    for head in heads:
        of_heads |= {f"{PREFIX}{head}.weight", f"{PREFIX}{head}.bias"}
    return {name: tensor for name, tensor in tensors.items() if name not in of_heads}


Pair = dict[str, torch.Tensor]  # by "A", "B", "embedding_A" and "embedding_B"


def _sort_tensors(
    tensors: Mapping[str, torch.Tensor], where: str
) -> tuple[dict[str, Pair], dict[str, str]]:
    """The factors in an adapter's file by module, and its copies of layers of the base.

    :param tensors: by name.
    :return: the pairs of factors, and by layer the names of copies.
    """
    pairs: dict[str, Pair] = {}
    base_copies = {}
    adapter_names = set()
    for key, tensor in tensors.items():
        factor = FACTOR_NAME.fullmatch(key)
        if factor is not None:
            _check_factor(key, tensor, where)
            kind = (factor["embedding"] or "") + factor["factor"]
            pairs.setdefault(factor["module"], {})[kind] = tensor
            adapter_names.add(factor["adapter"] or "")
            continue
        copied = COPY_NAME.fullmatch(key)
        if copied is None:
            raise ValueError(
                f"{where}: expected only lora_A and lora_B tensors, found {key!r}, "
                f"{explain_key(key)}"
            )
        base_copies[copied["layer"] + (copied["bias"] or "")] = key
    if not pairs:
        raise ValueError(f"{where}: expected LoRA tensors in {WEIGHTS}, found none")
    check_one_adapter(adapter_names, where)
    return pairs, base_copies


def _check_factor(key: str, tensor: torch.Tensor, where: str) -> None:
    """Refuse a shard of a factor, and numbers that are not finite."""
    if tensor.ndim < 2 or not tensor.numel():
        raise ValueError(
            f"{where}: expected matrices, found {key!r} of shape {list(tensor.shape)}, {SHARDED}"
        )
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"{where}: expected finite weights, found NaN or infinity in {key!r}; "
            "use an earlier checkpoint"
        )


def _make_factors(module: str, pair: Pair, settings: LoraSettings, where: str) -> Factors:
    """The factors of a module from its lora_A and lora_B."""
    embedding = "embedding_A" in pair or "embedding_B" in pair
    kinds = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(pair) != set(kinds):
        found = ", ".join(f"lora_{kind}" for kind in pair)
        raise ValueError(f"{where}: expected lora_A and lora_B for {module}, found only {found}")
    a, b = (pair[kind] for kind in kinds)
    rank, alpha = rank_and_alpha(settings, module, where)
    if not settings.target_parameters:  # what belongs to a parameter is not known without the base
        check_rank(module, a, b, rank, where)
    return Factors(a, b, settings.scale(rank, alpha), embedding)


def check_rank(module: str, a: torch.Tensor, b: torch.Tensor, rank: int, where: str) -> None:
    """Refuse factors of another rank than the configuration says.

    :param a: A, expected as an `(r, D_in)` tensor.
    :param b: B, expected as a `(D_out, r)` tensor.
    :param rank: r.
    :param where: the adapter as error messages name it.
    """
    matrices = a.ndim == b.ndim == 2
    if not matrices or a.shape[0] != b.shape[1] or a.shape[0] != rank:
        raise ValueError(
            f"{where}: expected rank {rank} in {module}, "
            f"found lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}; "
            f"{CONFIG} and {WEIGHTS} do not belong together"
        )


def _other_weights(folder: Path) -> str:
    """What a folder holds in place of a weight file in safetensors format."""
    pickles = []
    for path in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")):
        if path.name not in STATE_OF_TRAINERS:
            pickles.append(path)
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
