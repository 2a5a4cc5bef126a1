"""An append-only record of a run: JSON lines with a checksum each, on disk before they count.

Lines come in blocks that count together, because their records were computed together. A process
that is killed in the middle of a write leaves a truncated block at the end: its last line is
missing. The next process leaves this block out, and cuts it off when it writes a block of its own.
Any other damage is refused. Nothing is changed before the first block is written.

One process at a time has a journal, by a lock of the operating system on `history.jsonl.lock`
beside `history.jsonl`. The system takes the lock back when the process ends, however it ends.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

from evox_evogm.resume.atomic_write import sync_folder


class Block(NamedTuple):
    """Records that were written together."""

    records: list[dict]
    """In the order of their lines, without `block` and `crc32`."""
    length: int
    """Bytes of their lines."""


class Journal:
    """The records of a run, in a file that one process may write.

    :param path: the file, made if it is missing.
    :raises ValueError: if another process writes it, if it is damaged before its end, or if it is
        another kind of file.
    :raises OSError: if it cannot be written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.lock = _take_lock(self.path)
        try:
            self.blocks = read_blocks(self.path) if self.path.exists() else []
            # Without a buffer, which would keep what a full disk has refused.
            self.file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
            sync_folder(self.path.parent)
        except BaseException:
            self._release_lock()
            raise
        self.records: list[dict] = []
        self.end = 0  # of the last whole block, in bytes
        for block in self.blocks:
            self.records += block.records
            self.end += block.length

    def append(self, records: Sequence[dict]) -> None:
        """Write records that count together; when this returns, they are on disk.

        :raises OSError: if they cannot be written. The file then ends in a truncated block.
        :raises ValueError: if a number in them is not finite, which JSON does not have.
        """
        data = b""
        for index, record in enumerate(records):
            data += encode_record({**record, "block": [index, len(records)]}).encode()
        try:
            self.file.truncate(self.end)
            written = 0
            while written < len(data):  # a disk that fills up takes a part
                written += self.file.write(data[written:])
            os.fsync(self.file.fileno())
        except OSError as error:  # which does not say of which file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.blocks.append(Block(list(records), len(data)))
        self.records += records
        self.end += len(data)

    def cut(self, count: int) -> None:
        """Forget the last blocks, down to the one with record number `count`.

        The file follows when the next block is written.
        """
        while len(self.records) > count:
            block = self.blocks.pop()
            del self.records[-len(block.records) :]
            self.end -= block.length

    def close(self, *, remove_empty: bool = False) -> None:
        """Let another process have the journal.

        :param remove_empty: remove the file if nothing was ever written to it.
        """
        if self.file.closed:
            return
        self.file.close()
        if remove_empty and self.path.stat().st_size == 0:
            self.path.unlink()
        self._release_lock()

    def _release_lock(self) -> None:
        """Give the lock back and remove its file, before another process can have it."""
        if self.lock.is_locked:  # not in a fork of the process that has it
            # Windows removes no open file; there the lock removes it itself.
            with suppress(OSError):
                Path(self.lock.lock_file).unlink()
        self.lock.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def lock_path(path: Path) -> Path:
    """The file beside a journal whose lock the process has that writes the journal."""
    return path.with_name(f"{path.name}.lock")


def _take_lock(path: Path) -> BaseFileLock:
    """The lock of a journal, held.

    :raises ValueError: if another process holds it.
    """
    # Without the fallback, a file that a killed process would leave behind as if it still ran.
    lock = FileLock(lock_path(path), thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        found = "one that is writing it (or an object of this one, without close())"
        raise ValueError(f"{path}: expected no other process on this run, found {found}") from error
    return lock


def encode_record(record: dict) -> str:
    """A record as a line whose last entry is the CRC-32 of the rest.

    :raises ValueError: if a number in it is not finite.
    """
    text = json.dumps(record, allow_nan=False)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def decode_record(line: bytes) -> dict | None:
    """The record of a line, or None if the line was not written whole."""
    text, mark, rest = line.rpartition(b', "crc32": "')
    text += b"}"
    if not mark or rest != f'{zlib.crc32(text):08x}"}}\n'.encode():
        return None
    return json.loads(text)


def read_blocks(path: str | os.PathLike) -> list[Block]:
    """Every whole block of a journal.

    A truncated block at the end is left out.

    :param path: of the journal, which must exist.
    :return: the blocks in their order.
    :raises ValueError: if any other line is damaged or missing.
    """
    with open(path, "rb") as file:
        lines = file.readlines()
    blocks: list[Block] = []
    records: list[dict] = []  # of the present block
    length = 0  # of its lines
    for number, line in enumerate(lines, 1):
        record = decode_record(line)
        if record is None:
            begun_block = lines[number - len(records) - 1 :]
            other_file = number == 1 and not b'{"'.startswith(line[:2])
            if other_file or not _is_truncated(begun_block):
                found = f"found line {number} damaged"
                raise ValueError(f"{path}: expected records with their checksum, {found}")
            break
        index, size = record.pop("block")
        evaluation = number - 1  # every line is one
        if index != len(records) or record.get("evaluation", evaluation) != evaluation:
            found = f"found one missing before line {number}"
            raise ValueError(f"{path}: expected every record in its order, {found}")
        records.append(record)
        length += len(line)
        if len(records) == size:
            blocks.append(Block(records, length))
            records, length = [], 0
    return blocks


def _is_truncated(lines: Sequence[bytes]) -> bool:
    """Whether a file ends in a block that lacks its last line.

    A line that ends in a newline was written whole, unless a machine lost power while its disk
    wrote in another order: what was not written then reads as zeros.

    :param lines: from the beginning of the block to the end of the file.
    """
    whole, broken = [], []
    for line in lines:
        record = decode_record(line)
        if record is None:
            broken.append(line)
        else:
            whole.append(record["block"])
    if not lines[-1].endswith(b"\n"):
        # A newline that was damaged itself leaves a whole record behind.
        return len(broken) == 1 and decode_record(lines[-1][:-1] + b"\n") is None
    sizes = {size for _, size in whole}
    if len(sizes) != 1 or len(lines) >= max(sizes):
        return False
    has_last_line = any(index >= size - 1 for index, size in whole)
    return not has_last_line and all(b"\0" in line for line in broken)


def to_json(value):
    """The same value for JSON: a number that is not finite becomes its name, nan, inf or -inf.

    :param value: numbers, texts, None, or nested lists, tuples and tables of these.
    """
    if isinstance(value, Mapping):
        return {name: to_json(element) for name, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(element) for element in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_json(value):
    """The numbers, or nested lists of numbers, that `to_json` was called with."""
    if isinstance(value, list):
        return [from_json(element) for element in value]
    return float(value)
