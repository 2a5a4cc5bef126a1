"""Python code that a model wrote, run in a process of its own with limits of time and memory.

This is against mistakes, such as endless loops, not against malice: the code can read files and use
the network. Run what you do not trust inside a container.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MOST_OUTPUT = 2**16  # characters of each stream that are read

# Runs in the new process, which limits itself before it runs the code.
RUNNER = """
import sys
code, seconds, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    import resource
except ImportError:  # Windows has no such limits
    pass
else:
    for kind, most in (("CPU", seconds), ("AS", size), ("FSIZE", 2**24), ("CORE", 0)):
        number = getattr(resource, "RLIMIT_" + kind)
        _, hard = resource.getrlimit(number)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (most, most))
sys.argv = [code]
with open(code, encoding="utf-8") as file:
    source = file.read()
exec(compile(source, "code.py", "exec"), {"__name__": "__main__"})
"""


class CodeRun(NamedTuple):
    """What became of some code."""

    passed: bool
    """Whether it ended in time and without an error."""
    timed_out: bool
    """Whether it was stopped because its time was over."""
    output: str
    """What it printed, at most 65,536 characters."""
    error: str
    """What it wrote to stderr, such as its traceback."""


def run_python(code: str, *, seconds: float = 5.0, megabytes: int = 512) -> CodeRun:
    """Run Python code in a new process, in an empty folder that is removed afterwards.

    :param code: Python, with tests such as `assert add(1, 2) == 3` at its end.
    :param seconds: after which it is stopped, with the processes that it started.
    :param megabytes: the most memory of the process. Not on Windows.
    """
    with tempfile.TemporaryDirectory(prefix="evogm_code_") as folder:
        place = Path(folder)
        work = place / "work"
        work.mkdir()
        (place / "code.py").write_text(code, encoding="utf-8", errors="replace")
        limits = [str(max(1, round(seconds) + 1)), str(megabytes * 2**20)]
        command = [sys.executable, "-I", "-c", RUNNER, str(place / "code.py"), *limits]
        with open(place / "out", "wb") as out, open(place / "err", "wb") as err:
            process = subprocess.Popen(
                command,
                cwd=work,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            timed_out = False
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                stop(process)
        output, error = read_start(place / "out"), read_start(place / "err")
    return CodeRun(process.returncode == 0 and not timed_out, timed_out, output, error)


def environment() -> dict[str, str]:
    """The variables that the code gets: no keys and tokens of the user's."""
    kept = ("PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "LANG")
    return {name: os.environ[name] for name in kept if name in os.environ}


def stop(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def read_start(path: Path) -> str:
    """The beginning of a file, as text."""
    with open(path, "rb") as file:
        return file.read(MOST_OUTPUT).decode(errors="replace")
