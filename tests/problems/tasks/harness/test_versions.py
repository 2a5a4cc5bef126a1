"""The tests of this folder, which run with the installed lm-eval, run with the lowest version."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evox_evogm.problems.tasks.harness.package import VERSIONS

FOLDER = Path(__file__).parent


@pytest.mark.slow
def test_the_lowest_version_gives_the_same(tmp_path):
    lowest = VERSIONS.removeprefix(">=").split(",")[0]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    pip += ["--target", str(tmp_path), f"lm-eval=={lowest}"]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip(f"pip cannot fetch lm-eval {lowest} here")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "from importlib.metadata import version; print(version('lm_eval'))"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert found.stdout.strip() == lowest
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)]
    ran = subprocess.run(tests, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
