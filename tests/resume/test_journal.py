"""What is on disk counts, what is torn does not, and what is damaged is refused."""

import errno
import json
import multiprocessing
import os
import resource
import sys

import pytest

from evox_evogm.resume.journal import Journal, decode_record, encode_record, read_blocks

BLOCKS = [
    [{"x": 1}],
    [{"x": 2.5, "t": 'é\n"'}, {"x": None}],
    [{"x": [0.1]}, {"x": [0.2]}, {"x": [0.3]}],
]
ALL = [record for block in BLOCKS for record in block]


def read(path):
    return [record for block, _ in read_blocks(path) for record in block]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "history.jsonl"
    with Journal(path) as journal:
        for block in BLOCKS:
            journal.append(block)
    return path


def test_a_later_process_reads_what_was_written(written):
    with Journal(written) as journal:
        assert journal.records == ALL
        journal.append([{"x": 4}])
    assert read(written) == [*ALL, {"x": 4}]


def test_every_line_is_json_and_its_checksum_is_that_of_the_rest(written):
    for line in written.read_bytes().splitlines(keepends=True):
        assert json.loads(line)["crc32"] and decode_record(line) is not None
        assert decode_record(line.replace(b'"x"', b'"y"')) is None
    assert decode_record(encode_record({"x": 1}).encode()[:-1]) is None


def test_whatever_is_cut_off_at_the_end_leaves_the_whole_blocks_before_it(written):
    whole = written.read_bytes()
    ends = [0]
    for block in BLOCKS:
        lines = [
            encode_record({**record, "block": [i, len(block)]}) for i, record in enumerate(block)
        ]
        ends.append(ends[-1] + len("".join(lines).encode()))
    for length in range(len(whole) + 1):
        written.write_bytes(whole[:length])
        kept = sum(end <= length for end in ends) - 1
        expected = [record for block in BLOCKS[:kept] for record in block]
        with Journal(written) as journal:
            assert journal.records == expected
            journal.append([{"x": "next"}])
        assert read(written) == [*expected, {"x": "next"}]


def test_opening_changes_nothing_and_the_torn_block_goes_when_the_next_is_written(written):
    torn = written.read_bytes()[:-5]
    written.write_bytes(torn)
    with Journal(written) as journal:
        assert journal.records == ALL[:3] and written.read_bytes() == torn
        journal.append([{"x": 4}])
    assert read(written) == [*ALL[:3], {"x": 4}]


def test_damage_is_refused_wherever_it_is_and_nothing_is_cut_off(written):
    whole = written.read_bytes()
    for position in range(len(whole)):
        written.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(
            ValueError,
            match=r"history.jsonl: expected records with their checksum, found line \d damaged",
        ):
            Journal(written)
    assert len(written.read_bytes()) == len(whole)


def test_a_torn_block_may_have_holes_as_a_machine_without_power_leaves_them(written):
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(
        b"".join(lines[:4]) + b"\0" * (len(lines[4]) - 1) + b"\n"
    )  # the last of three is missing
    assert read(written) == ALL[:3]
    written.write_bytes(b"".join(lines[:4]) + b"\0" * (len(lines[4]) - 1) + b"\n" + lines[5])
    with pytest.raises(ValueError, match="found line 5 damaged"):
        read(written)


@pytest.mark.parametrize("missing", range(5))
def test_a_line_that_is_missing_in_the_middle_is_refused(tmp_path, missing):
    path = tmp_path / "history.jsonl"
    with Journal(path) as journal:
        for first, size in ((0, 1), (1, 2), (3, 1), (4, 2)):
            journal.append([{"evaluation": first + index} for index in range(size)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:missing] + lines[missing + 1 :]))
    with pytest.raises(
        ValueError, match="expected every record in its order, found one missing before line"
    ):
        Journal(path)


@pytest.mark.parametrize("content", ["my thesis", "my\nthesis\n", "[1, 2]", '{"my": "thesis"}\n'])
def test_another_file_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "history.jsonl"
    path.write_text(content)
    with pytest.raises(
        ValueError, match="expected records with their checksum, found line 1 damaged"
    ):
        Journal(path)
    assert path.read_text() == content


def test_numbers_that_json_lacks_are_refused(written):
    with Journal(written) as journal, pytest.raises(ValueError, match="not JSON compliant"):
        journal.append([{"x": float("nan")}])
    assert read(written) == ALL


def test_blocks_can_be_forgotten_and_written_otherwise(written):
    with Journal(written) as journal:
        journal.cut(4)  # in the middle of the last block
        assert journal.records == ALL[:3] and read(written) == ALL
        journal.append([{"x": "other"}])
    assert read(written) == [*ALL[:3], {"x": "other"}]


def open_elsewhere(path, said):
    try:
        Journal(path)
        said.load("opened")
    except ValueError as error:
        said.load(str(error))


def test_a_second_process_is_refused_until_the_first_has_closed(written):
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    with Journal(written):
        process = context.Process(target=open_elsewhere, args=(written, said))
        process.start()
        assert "expected no other process on this run, found one that is writing it" in said.get(
            timeout=30
        )
        process.join()
    Journal(written).close()


def fill_up(path, said):
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, resource.RLIM_INFINITY))
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    journal = Journal(path)
    try:
        journal.append([{"x": "a" * 100}])
    except OSError as error:
        said.load((error.errno, journal.records == ALL))


def test_a_full_disk_is_an_error_and_costs_nothing_that_was_written(written):
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    process = context.Process(target=fill_up, args=(written, said))
    process.start()
    assert said.get(timeout=30) == (errno.EFBIG, True)
    process.join()
    with Journal(written) as journal:
        assert journal.records == ALL


def test_after_a_full_disk_the_same_journal_goes_on(written, monkeypatch):
    with Journal(written) as journal:
        with monkeypatch.context() as full:
            full.setattr(
                os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
            )
            with pytest.raises(OSError, match="full"):
                journal.append([{"x": "lost"}])
        journal.append([{"x": "kept"}])
    assert read(written) == [*ALL, {"x": "kept"}]


def test_a_system_without_locks_is_told_so_only_when_it_opens_a_journal(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(
        ModuleNotFoundError,
        match="a journal needs the module fcntl, which Python has on Linux and macOS only",
    ):
        Journal(tmp_path / "history.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        Journal(tmp_path / "history.jsonl")
