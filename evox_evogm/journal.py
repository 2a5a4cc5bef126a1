"""An append-only record of a run: JSON lines with a checksum each, on disk before what they say counts.

Lines come in blocks that count together, because the members of a block were computed together. A process that is killed in
the middle of a write leaves a torn block at the end, which the next one cuts off; damage anywhere else is refused.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path


class Journal:
    """The records of a run, in a file that one process may write.

    :param path: the file, made if it is missing.
    :raises ValueError: if another process writes it, or if it is damaged before its end.
    :raises OSError: if it cannot be written.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.file = open(self.path, "a+b")  # noqa: SIM115  open as long as the journal is
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system gives it back when the process ends
        except OSError as error:
            self.file.close()
            raise ValueError(f"{self.path}: expected no other process on this run, found one that is writing it") from error
        try:
            self.records, end = read_records(self.path)
            self.file.truncate(end)
        except BaseException:
            self.file.close()
            raise

    def append(self, block: Sequence[dict]) -> None:
        """Write records that count together; when this returns, they are on disk.

        :raises OSError: if they cannot be written. The file is then as before, or ends in a torn block.
        """
        lines = [seal({**record, "block": [index, len(block)]}) for index, record in enumerate(block)]
        self.file.write("".join(lines).encode())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.records += block

    def close(self) -> None:
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def seal(record: dict) -> str:
    """A record as a line whose last entry is the CRC-32 of the rest."""
    text = json.dumps(record)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def unseal(line: bytes) -> dict | None:
    """The record of a line, or None if it is not one that was written whole."""
    text, mark, rest = line.rpartition(b', "crc32": "')
    text += b"}"
    if not mark or rest != f'{zlib.crc32(text):08x}"}}\n'.encode():
        return None
    return json.loads(text)


def read_records(path) -> tuple[list[dict], int]:
    """The records of all whole blocks, and the number of bytes that hold them.

    :raises ValueError: if a line is damaged that is not part of the last block.
    """
    records, block, end, position = [], [], 0, 0
    lines = Path(path).read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        record = unseal(line)
        position += len(line)
        if record is None:
            if number < len(lines):
                raise ValueError(f"{path}: expected records with their checksum, found line {number} damaged")
            break
        index, size = record.pop("block")
        block = [*block, record] if index else [record]
        if index == size - 1:
            records, block, end = records + block, [], position
    return records, end
