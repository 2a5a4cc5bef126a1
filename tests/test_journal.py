"""What is on disk counts, what is torn does not, and what is damaged is refused."""

import errno
import json
import multiprocessing
import os
import resource

import pytest

from evox_evogm.journal import Journal, read_records, seal, unseal

BLOCKS = [[{"x": 1}], [{"x": 2.5, "t": 'é\n"'}, {"x": None}], [{"x": [0.1]}, {"x": [0.2]}, {"x": [0.3]}]]
ALL = [record for block in BLOCKS for record in block]


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
    assert read_records(written)[0] == [*ALL, {"x": 4}]


def test_every_line_is_json_and_its_checksum_is_that_of_the_rest(written):
    for line in written.read_bytes().splitlines(keepends=True):
        assert json.loads(line)["crc32"] and unseal(line) is not None
        assert unseal(line.replace(b'"x"', b'"y"')) is None
    assert unseal(seal({"x": 1}).encode()[:-1]) is None


def test_whatever_is_cut_off_at_the_end_leaves_the_whole_blocks_before_it(written):
    whole = written.read_bytes()
    ends = [0]
    for block in BLOCKS:
        lines = [seal({**record, "block": [i, len(block)]}) for i, record in enumerate(block)]
        ends.append(ends[-1] + len("".join(lines).encode()))
    for length in range(len(whole) + 1):
        written.write_bytes(whole[:length])
        kept = sum(end <= length for end in ends) - 1
        expected = [record for block in BLOCKS[:kept] for record in block]
        with Journal(written) as journal:
            assert journal.records == expected
            journal.append([{"x": "next"}])
        assert read_records(written)[0] == [*expected, {"x": "next"}]


def test_damage_before_the_end_is_refused(written):
    content = written.read_bytes()
    written.write_bytes(content.replace(b"2.5", b"2.6"))
    with pytest.raises(ValueError, match=r"history.jsonl: expected records with their checksum, found line 2 damaged"):
        Journal(written)
    assert written.read_bytes() == content.replace(b"2.5", b"2.6")  # nothing was cut off


def open_elsewhere(path, said):
    try:
        Journal(path)
        said.put("opened")
    except ValueError as error:
        said.put(str(error))


def test_a_second_process_is_refused_until_the_first_has_closed(written):
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    with Journal(written):
        process = context.Process(target=open_elsewhere, args=(written, said))
        process.start()
        assert "expected no other process on this run, found one that is writing it" in said.get(timeout=30)
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
        said.put((error.errno, journal.records == ALL))


def test_a_full_disk_is_an_error_and_costs_nothing_that_was_written(written):
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    process = context.Process(target=fill_up, args=(written, said))
    process.start()
    assert said.get(timeout=30) == (errno.EFBIG, True)
    process.join()
    with Journal(written) as journal:
        assert journal.records == ALL


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        Journal(tmp_path / "history.jsonl")
