"""What is on disk counts, what is truncated does not, and what is damaged is refused."""

import errno
import fcntl
import json
import multiprocessing
import os
import resource
import signal
import time

import pytest

from evox_evogm.resume.journal import (
    Journal,
    decode_record,
    encode_record,
    from_json,
    lock_path,
    read_blocks,
    to_json,
)

BLOCKS = [
    [{"x": 1}],
    [{"x": 2.5, "t": 'é\n"'}, {"x": None}],
    [{"x": [0.1]}, {"x": [0.2]}, {"x": [0.3]}],
]
ALL = [record for block in BLOCKS for record in block]


def read(path):
    records = []
    for block in read_blocks(path):
        records += block.records
    return records


def lines_of(block):
    lines = []
    for index, record in enumerate(block):
        lines.append(encode_record({**record, "block": [index, len(block)]}))
    return "".join(lines).encode()


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
    first, second, third = map(len, map(lines_of, BLOCKS))
    for length in range(len(whole) + 1):
        written.write_bytes(whole[:length])
        expected = []
        if length >= first:
            expected += BLOCKS[0]
        if length >= first + second:
            expected += BLOCKS[1]
        if length >= first + second + third:
            expected += BLOCKS[2]
        with Journal(written) as journal:
            assert journal.records == expected
            journal.append([{"x": "next"}])
        assert read(written) == [*expected, {"x": "next"}]


def test_opening_changes_nothing_and_the_truncated_block_goes_when_the_next_is_written(written):
    truncated = written.read_bytes()[:-5]
    written.write_bytes(truncated)
    with Journal(written) as journal:
        assert journal.records == ALL[:3] and written.read_bytes() == truncated
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


def test_a_truncated_block_may_have_holes_as_a_machine_without_power_leaves_them(written):
    lines = written.read_bytes().splitlines(keepends=True)
    hole = b"\0" * (len(lines[4]) - 1) + b"\n"
    written.write_bytes(b"".join(lines[:4]) + hole)  # the last of three is missing
    assert read(written) == ALL[:3]
    written.write_bytes(b"".join(lines[:4]) + hole + lines[5])
    with pytest.raises(ValueError, match="found line 5 damaged"):
        read(written)


@pytest.mark.parametrize("missing", range(5))
def test_a_line_that_is_missing_in_the_middle_is_refused(tmp_path, missing):
    path = tmp_path / "history.jsonl"
    with Journal(path) as journal:
        for first, size in ((0, 1), (1, 2), (3, 1), (4, 2)):
            journal.append([{"evaluation": first + index} for index in range(size)])
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[missing]
    path.write_bytes(b"".join(lines))
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


def test_numbers_that_json_lacks_are_written_by_their_names_and_read_again():
    values = [[1.5, float("nan")], [float("inf"), -float("inf")]]
    assert to_json({"x": values, "y": None}) == {"x": [[1.5, "nan"], ["inf", "-inf"]], "y": None}
    assert repr(from_json(to_json(values))) == repr(values)


def test_blocks_can_be_forgotten_and_written_otherwise(written):
    with Journal(written) as journal:
        journal.cut(4)  # in the middle of the last block
        assert journal.records == ALL[:3] and read(written) == ALL
        journal.append([{"x": "other"}])
    assert read(written) == [*ALL[:3], {"x": "other"}]


def start_process(function, *arguments):
    """A forked process, and the queue that it puts its findings in."""
    context = multiprocessing.get_context("fork")
    findings = context.Queue()
    process = context.Process(target=function, args=(*arguments, findings))
    process.start()
    return process, findings


def open_journal(path, findings):
    try:
        Journal(path)
        findings.put("opened")
    except ValueError as error:
        findings.put(str(error))


def open_in_another_process(path):
    process, findings = start_process(open_journal, path)
    found = findings.get(timeout=30)
    process.join()
    return found


REFUSED = "expected no other process on this run, found one that is writing it"


def test_a_second_process_is_refused_until_the_first_has_closed(written):
    with Journal(written):
        assert REFUSED in open_in_another_process(written)
    assert open_in_another_process(written) == "opened"


def test_a_second_object_of_the_same_process_is_refused(written):
    with (
        Journal(written),
        pytest.raises(ValueError, match=r"or an object of this one, without close\(\)"),
    ):
        Journal(written)


def hold_until_killed(path, findings):
    journal = Journal(path)
    journal.append([{"x": "held"}])
    findings.put("opened")
    time.sleep(60)


def test_the_journal_of_a_killed_process_is_free_and_has_what_it_wrote(written):
    process, findings = start_process(hold_until_killed, written)
    assert findings.get(timeout=30) == "opened"
    with pytest.raises(ValueError, match=REFUSED):
        Journal(written)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert lock_path(written).exists()
    with Journal(written) as journal:
        assert journal.records == [*ALL, {"x": "held"}]


def test_a_closed_journal_leaves_no_lock_file(written):
    assert [path.name for path in written.parent.iterdir()] == ["history.jsonl"]


@pytest.mark.parametrize("content", [None, b"rubbish"])
def test_a_refused_journal_leaves_no_lock_file(tmp_path, content):
    path = tmp_path / "history.jsonl"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises((ValueError, OSError)):
        Journal(path)
    assert not lock_path(path).exists()


def test_an_empty_journal_can_be_removed_with_its_lock(tmp_path):
    path = tmp_path / "history.jsonl"
    Journal(path).close(remove_empty=True)
    assert not any(tmp_path.iterdir())


def test_a_journal_with_records_is_never_removed(written):
    Journal(written).close(remove_empty=True)
    assert read(written) == ALL


def close_journal(journal, findings):
    journal.close()
    findings.put("closed")


def test_a_fork_that_closes_the_journal_leaves_the_lock_to_its_parent(written):
    with Journal(written) as journal:
        process, findings = start_process(close_journal, journal)
        assert findings.get(timeout=30) == "closed"
        process.join()
        assert REFUSED in open_in_another_process(written)


def test_a_lock_whose_file_its_former_owner_removed_does_not_count(tmp_path, monkeypatch):
    path = tmp_path / "history.jsonl"
    flock = fcntl.flock

    def flock_after_removal(descriptor, operation):
        lock_path(path).unlink(missing_ok=True)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_removal)
    with pytest.raises(ValueError, match="expected no other process on this run"):
        Journal(path)


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    def no_flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    with pytest.raises(OSError, match="Function not implemented"):
        Journal(tmp_path / "history.jsonl")


def fill_up(path, findings):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = path.stat().st_size + 30
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    journal = Journal(path)
    try:
        journal.append([{"x": "a" * 100}])
    except OSError as error:
        findings.put((error.errno, journal.records == ALL))


def test_a_full_disk_is_an_error_and_costs_nothing_that_was_written(written):
    process, findings = start_process(fill_up, written)
    assert findings.get(timeout=30) == (errno.EFBIG, True)
    process.join()
    with Journal(written) as journal:
        assert journal.records == ALL


def test_after_a_full_disk_the_same_journal_goes_on(written, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "full")

    with Journal(written) as journal:
        with monkeypatch.context() as full_disk:
            full_disk.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="full"):
                journal.append([{"x": "lost"}])
        journal.append([{"x": "kept"}])
    assert read(written) == [*ALL, {"x": "kept"}]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        Journal(tmp_path / "history.jsonl")
