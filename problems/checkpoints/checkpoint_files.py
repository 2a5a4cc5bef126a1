"""The safetensors files of a model, whose tensors are mapped: the disk is read where they are used.

A mapped tensor takes no memory of the process. The system keeps what was read as long as nothing
else needs the memory.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
OTHER_WEIGHTS = ("pytorch_model*", "*.gguf", "consolidated*", "tf_model*")
# Numbers that are computed with at a time: so many stay in a processor's cache.
CHUNK = 2**16
DEVICE_CHUNK = 2**24  # of a GPU, which takes as long for few numbers as for many


def is_checkpoint(folder) -> bool:
    """Whether a folder holds a whole model, and no adapter."""
    folder = Path(folder)
    if not (folder / MODEL_CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file():
        return False
    return any(any(folder.glob(pattern)) for pattern in ("model*.safetensors*", *OTHER_WEIGHTS))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    :param file: that holds it.
    :param shape: of the tensor.
    :param dtype: as safetensors names it, such as `BF16`.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str


class CheckpointFiles:
    """The tensors of a model in a folder, by their names in the files.

    :param folder: with `model.safetensors`, or with shards and their index.
    :param where: the model as error messages name it.
    :raises ValueError: if files are missing, damaged, or hold weights that cannot be merged.
    """

    def __init__(self, folder, where: str):
        self.folder = Path(folder)
        self.where = where
        self._open: dict[Path, Any] = {}
        self.stored: dict[str, StoredTensor] = {}
        for file in self.paths():
            self._read_header(file)

    def paths(self) -> list[Path]:
        """The files with tensors.

        :raises ValueError: if there are none, or one is missing.
        """
        return weight_files(self.folder, self.where)

    def _read_header(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            opened = safe_open(file, framework="pt")
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
                self.stored[name] = StoredTensor(file, shape, dtype)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"{self.where}: expected safetensors in {file.name}, found {error}"
            ) from error
        self._open[file] = opened

    def tensor(self, name: str) -> torch.Tensor:
        """A mapped tensor on the CPU. It must not be written to."""
        found = self._open[self.stored[name].file].get_tensor(name)
        assert isinstance(found, torch.Tensor)
        return found

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.stat().st_size for file in self._open)


def weight_files(folder: Path, where: str) -> list[Path]:
    """The safetensors files of a model.

    :param where: the model as error messages name it.
    :raises ValueError: if there are none, or a shard is missing.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            raise ValueError(
                f"{where}: expected {WEIGHTS} or {INDEX}, found {_other_weights(folder)}; save it "
                "with save_pretrained(..., safe_serialization=True)"
            )
        return [folder / WEIGHTS]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where}: expected a weight_map in {INDEX}, found that it cannot be read: {error!r}"
        ) from error
    missing = [name for name in names if not (folder / Path(str(name)).name).is_file()]
    if missing or not names:
        found = f"{len(missing)} missing, as {missing[0]}" if missing else "none"
        raise ValueError(
            f"{where}: expected all {len(names)} files that {INDEX} names, found {found}; "
            "download it again"
        )
    return [folder / Path(str(name)).name for name in names]


def _other_weights(folder: Path) -> str:
    """What a folder holds in place of safetensors."""
    for pattern in ("*.bin", "*.pt", "*.pth"):
        for found in sorted(folder.glob(pattern)):
            return f"only {found.name}, a pickle that is not read because it can run code"
    for found in sorted(folder.glob("*.gguf")):
        return f"only {found.name}, which is quantized"
    return "none"


def rows_of(tensor: torch.Tensor, device: torch.device | None = None) -> Iterator[slice]:
    """Slices of the first dimension, each with as many numbers as are computed with at a time.

    :param device: that computes; the CPU by default.
    """
    if tensor.ndim == 0 or not tensor.numel():
        yield slice(None)
        return
    size = CHUNK if device is None or device.type == "cpu" else DEVICE_CHUNK
    rows = min(len(tensor), max(1, size * len(tensor) // tensor.numel()))
    for start in range(0, len(tensor), rows):
        yield slice(start, min(start + rows, len(tensor)))


def at_rows(tensor: torch.Tensor, rows: slice) -> torch.Tensor:
    """Rows of a tensor; all of a number without dimensions."""
    return tensor[rows] if tensor.ndim else tensor


def holds_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the second tensor, rounded to the dtype of the first, equals the first.

    Part by part, so that little memory is needed. Signs of zeros do not count.
    """
    if one.shape != other.shape:
        return False
    for rows in rows_of(one):
        rounded = at_rows(other, rows).to("cpu", one.dtype)
        if not torch.equal(at_rows(one, rows).to("cpu"), rounded):
            return False
    return True


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity."""
    return all(bool(at_rows(tensor, rows).isfinite().all()) for rows in rows_of(tensor))
