"""An expert that is a whole model of the base's architecture.

What it adds to the base is the difference of the weights, theta_k - theta_pre. In bfloat16 such a
difference loses most of a small change. So the weights themselves are kept, in the dtype of their
file, and subtracted from the base's in float32 while a merge is made: nothing is lost, and two
bytes a weight are enough for a bfloat16 model.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from evox_evogm.problems.adapters.read_adapter import Expert, describe
from evox_evogm.problems.checkpoints.base_weights import BaseWeights
from evox_evogm.problems.checkpoints.checkpoint_files import (
    DTYPES,
    MODEL_CONFIG,
    CheckpointFiles,
)

# Tensors that older versions of transformers saved, and that are no weights.
COMPUTED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias")


@dataclass(frozen=True)
class FullCheckpoint:
    """The weights of a whole model.

    :param files: where they are.
    :param config: what `config.json` holds.
    :param tensors: the weights that differ from the base's, by the base's names; empty until
        `fit_checkpoint` has compared them. They must not be written to.
    :param base: the weights that they are compared with; None until then.
    :param compared: how many weights were compared.
    :param mapped: whether the tensors are mapped from their files.
    """

    files: CheckpointFiles
    config: Mapping
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    base: BaseWeights | None = None
    compared: int = 0
    mapped: bool = True

    @property
    def bytes(self) -> int:
        """The size of the weights that differ."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def words(self) -> str:
        """What it is, on one line."""
        kept = "mapped from its files" if self.mapped else "in memory"
        return (
            f"full checkpoint, {len(self.tensors)} of {self.compared} tensors differ, "
            f"{megabytes(self.bytes)} of differences, {kept}"
        )


def checkpoint_of(expert: Expert) -> FullCheckpoint:
    """The whole model of an expert that is one."""
    assert expert.checkpoint is not None, f"{expert.name} is an adapter"
    return expert.checkpoint


def has_checkpoints(experts) -> bool:
    """Whether any expert is a whole model."""
    return any(expert.checkpoint is not None for expert in experts)


def read_checkpoint(folder, *, name: str | None = None) -> Expert:
    """Read the configuration and the headers of a whole model; its weights stay on the disk.

    :param folder: with `config.json` and safetensors.
    :param name: of the expert. Defaults to the folder's name.
    :raises ValueError: one sentence saying which expert, what was found and what to do.
    """
    folder = Path(folder)
    name = name or folder.name
    where = describe(name, folder)
    files = CheckpointFiles(folder, where)
    for tensor_name, stored in files.stored.items():
        if stored.dtype not in DTYPES and not tensor_name.endswith(COMPUTED):
            raise ValueError(
                f"{where}: expected weights in float32, bfloat16 or float16, found "
                f"{stored.dtype} in {tensor_name}; take the unquantized model"
            )
    return Expert(
        name, folder, "", {}, checkpoint=FullCheckpoint(files, read_config(folder, where))
    )


def read_config(folder: Path, where: str) -> dict:
    """What `config.json` of a model holds.

    :param where: the model as error messages name it.
    :raises ValueError: if it is no table.
    """
    try:
        config = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON in {MODEL_CONFIG}, found {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where}: expected a table in {MODEL_CONFIG}, found {config!r:.50}")
    if "quantization_config" in config:
        raise ValueError(
            f"{where}: expected a model in floating point, found a quantized one; take the "
            "unquantized model"
        )
    return config


def module_of(parameter: str) -> str:
    """The module of a parameter, as groups and adapters name it.

    A parameter that is neither weight nor bias of a layer, such as that of the experts of a
    mixture, goes by its own name.
    """
    module, _, last = parameter.rpartition(".")
    return module if last in ("weight", "bias") else parameter


def ranks_of_modules(experts: Iterable[Expert]) -> dict[str, int]:
    """The largest rank that any expert has in each module that it changes, by module.

    A whole model counts as one of rank 1.
    """
    ranks: dict[str, int] = {}
    for expert in experts:
        for name, factors in expert.modules.items():
            ranks[name] = max(factors.a.shape[-2], ranks.get(name, 0))
        if expert.checkpoint is not None:
            for tensor in expert.checkpoint.tensors:
                ranks.setdefault(module_of(tensor), 1)
    return ranks


def megabytes(size: float) -> str:
    """A size in words."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    if size >= 2**20:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**10:.1f} KiB"
