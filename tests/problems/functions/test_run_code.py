"""Code of others in a process of its own."""

import os
import sys
import time

import pytest

from evox_evogm.problems import run_python


def test_tests_pass_or_fail():
    good = run_python("def add(a, b):\n    return a + b\n\nassert add(1, 2) == 3\nprint('done')")
    assert good.passed and good.output == "done\n" and good.error == ""
    bad = run_python("assert 1 + 1 == 3")
    assert not bad.passed and not bad.timed_out and "AssertionError" in bad.error
    assert not run_python("this is no Python").passed
    assert not run_python("raise SystemExit(1)").passed


def test_endless_code_is_stopped_in_time():
    start = time.monotonic()
    found = run_python("print('begun', flush=True)\nwhile True:\n    pass", seconds=0.5)
    assert found.timed_out and not found.passed
    assert time.monotonic() - start < 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_memory_is_limited():
    found = run_python("data = bytearray(2**30)\nprint(len(data))", megabytes=256)
    assert not found.passed and "MemoryError" in found.error
    assert run_python("data = bytearray(2**24)", megabytes=256).passed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_processes_that_the_code_starts_end_with_it(tmp_path):
    place = tmp_path / "alive"
    code = f"""
import os, time
if os.fork() == 0:
    time.sleep(1.5)
    open({str(place)!r}, "w").close()
"""
    assert run_python(code, seconds=5).passed
    time.sleep(2)
    assert not place.exists()


def test_the_code_sees_no_keys_and_leaves_no_files(monkeypatch):
    monkeypatch.setenv("MY_SECRET_KEY", "xyz")
    code = (
        "import os\nopen('left', 'w').write('x')\nprint(os.getcwd(), 'MY_SECRET_KEY' in os.environ)"
    )
    folder, seen = run_python(code).output.split()
    assert seen == "False" and not os.path.exists(folder)
