"""An append-only record of a run: JSON lines with a checksum each, on disk before what they say counts.

Lines come in blocks that count together, because the members of a block were computed together. A process that is killed in
the middle of a write leaves a torn block at the end: its last line is missing. The next process leaves it out, and cuts it
off when it writes a block of its own; any other damage is refused. Nothing is changed before the first block is written.
"""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from evox_evogm.resume.atomic_write import sync


class Journal:
    """The records of a run, in a file that one process may write.

    :param path: the file, made if it is missing.
    :raises ValueError: if another process writes it, or if it is damaged before its end or something else.
    :raises OSError: if it cannot be written.
    """

    def __init__(self, path):
        self.path = Path(path)
        # Open as long as the journal is, and without a buffer, which would keep what a full disk has refused.
        self.file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            sync(self.path.parent)
            self.blocks = read_blocks(self.path)
            self.records = [record for block, _ in self.blocks for record in block]
            self.end = sum(length for _, length in self.blocks)
        except BaseException:
            self.file.close()
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "a journal needs the module fcntl, which Python has on Linux and macOS only"
            ) from error
        try:
            fcntl.flock(
                self.file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # the system gives it back when the process ends
            lost = not os.path.samestat(
                os.fstat(self.file.fileno()), self.path.stat()
            )  # removed by who had it before
        except (BlockingIOError, FileNotFoundError):
            lost = True
        if lost:
            found = "one that is writing it (or an object of this one, without close())"
            raise ValueError(f"{self.path}: expected no other process on this run, found {found}")

    def append(self, block: Sequence[dict]) -> None:
        """Write records that count together; when this returns, they are on disk.

        :raises OSError: if they cannot be written. The file then ends in a torn block.
        :raises ValueError: if a number in them is not finite, which JSON does not have.
        """
        lines = [
            encode_record({**record, "block": [index, len(block)]})
            for index, record in enumerate(block)
        ]
        data = "".join(lines).encode()
        try:
            self.file.truncate(self.end)
            written = 0
            while written < len(data):  # a disk that fills up takes a part
                written += self.file.write(data[written:])
            os.fsync(self.file.fileno())
        except OSError as error:  # which does not say of which file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.blocks.append((list(block), len(data)))
        self.records += block
        self.end += len(data)

    def cut(self, count: int) -> None:
        """Forget the last blocks, down to the one that has record number `count`; the file follows at the next block."""
        while len(self.records) > count:
            block, length = self.blocks.pop()
            del self.records[-len(block) :]
            self.end -= length

    def close(self) -> None:
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def encode_record(record: dict) -> str:
    """A record as a line whose last entry is the CRC-32 of the rest."""
    text = json.dumps(record, allow_nan=False)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def decode_record(line: bytes) -> dict | None:
    """The record of a line, or None if it is not one that was written whole."""
    text, mark, rest = line.rpartition(b', "crc32": "')
    text += b"}"
    if not mark or rest != f'{zlib.crc32(text):08x}"}}\n'.encode():
        return None
    return json.loads(text)


def read_blocks(path) -> list[tuple[list[dict], int]]:
    """The records of every whole block, and the number of bytes that hold them.

    :raises ValueError: if a line is damaged or missing that is not part of a torn block at the end.
    """
    with open(path, "rb") as file:
        lines = file.readlines()
    blocks, block, length, count = [], [], 0, 0
    for number, line in enumerate(lines, 1):
        record = decode_record(line)
        if record is None:
            if not _is_truncated(lines[number - len(block) - 1 :]) or (
                number == 1 and not b'{"'.startswith(line[:2])
            ):
                raise ValueError(
                    f"{path}: expected records with their checksum, found line {number} damaged"
                )
            break
        index, size = record.pop("block")
        if index != len(block) or record.get("evaluation", count) != count:
            raise ValueError(
                f"{path}: expected every record in its order, found one missing before line {number}"
            )
        block, length, count = [*block, record], length + len(line), count + 1
        if len(block) == size:
            blocks.append((block, length))
            block, length = [], 0
    return blocks


def _is_truncated(lines: Sequence[bytes]) -> bool:
    """Whether the lines from the beginning of a block to the end of the file lack its last one.

    A line that ends in a newline was written whole, unless a machine lost power while its disk wrote in another order: what
    was not written then reads as zeros.
    """
    records = [record for line in lines if (record := decode_record(line)) is not None]
    if not lines[-1].endswith(b"\n"):
        # A newline that was damaged itself leaves a whole record behind.
        return len(lines) == 1 + len(records) and decode_record(lines[-1][:-1] + b"\n") is None
    sizes = {record["block"][1] for record in records}
    holes = all(b"\0" in line for line in lines if decode_record(line) is None)
    return (
        holes
        and len(sizes) == 1
        and len(lines) < max(sizes)
        and all(r["block"][0] < max(sizes) - 1 for r in records)
    )
