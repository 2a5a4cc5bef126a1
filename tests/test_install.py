"""The package installed from a wheel and as an editable install, in fresh environments.

They have the packages of this environment on their path, but not this checkout: a `.pth` file in a
folder that another `.pth` file names is not read.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OPTIONS = ["--quiet", "--no-deps", "--no-build-isolation"]


def run(*command, folder, **variables):
    """Run a command in a folder, and return what it printed."""
    command = list(map(str, command))
    environment = {**os.environ, "PYTHONPATH": "", **variables}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what a build reads, because building leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    without_caches = shutil.ignore_patterns("__pycache__")
    for name in ("evox_evogm", "problems"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=without_caches)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", *OPTIONS, "--wheel-dir", folder, source, folder=folder)
    (path,) = folder.glob("*.whl")
    return path


class Environment:
    """A fresh virtual environment with the packages of this one."""

    def __init__(self, folder):
        run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.packages = Path(run(self.python, "-c", code, folder=folder).strip())
        (self.packages / "packages.pth").write_text(sysconfig.get_path("purelib"))

    def install(self, *arguments):
        pip = [*PIP, "--python", self.python, "install", *OPTIONS, "--ignore-installed"]
        run(*pip, *arguments, folder=self.packages)

    def run_code(self, code, folder, **variables):
        return run(self.python, "-c", code, folder=folder, **variables)


@pytest.fixture(scope="module", params=["wheel", "editable"])
def environment(request, source, wheel, tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp(request.param) / "environment")
    arguments = [wheel] if request.param == "wheel" else ["--editable", source]
    environment.install(*arguments)
    return environment


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel, source):
    expected = set()
    for folder, package in (("evox_evogm", "evox_evogm"), ("problems", "evox_evogm/problems")):
        for path in (source / folder).rglob("*"):
            name = f"{package}/{path.relative_to(source / folder).as_posix()}"
            if path.is_file() and path.suffix != ".md":
                expected.add(name.replace("evox_evogm/_evox_ext", "evox_ext"))
    found = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in found if ".dist-info/" not in name} == expected
    assert {"evox_evogm/py.typed", "evox_ext/algorithms/EvoGM.py"} < expected
    assert not any(name.endswith("__init__.py") for name in found if name.startswith("evox_ext"))


def test_evox_and_python_find_the_package(environment, tmp_path):
    code = """
import evox, evox_evogm, evox_evogm.problems, importlib.util, sys
assert evox.algorithms.EvoGM is evox_evogm.EvoGM
assert evox.algorithms.SurrogateEvoGM is evox_evogm.SurrogateEvoGM
assert evox.problems.LoRAMergeProblem is evox_evogm.problems.LoRAMergeProblem
from evox.algorithms import *
from evox.problems import *
EvoGM, SurrogateEvoGM, PSO, LoRAMergeProblem
assert importlib.util.find_spec("problems") is None
print(evox_evogm.__file__)
"""
    file = environment.run_code(code, tmp_path).strip()
    assert not Path(file).is_relative_to(ROOT)


def test_the_command_runs(environment, tmp_path):
    assert "merge" in run(environment.python.with_name("evogm"), "--help", folder=tmp_path)


def write_plugin(folder, file, text):
    path = folder / "evox_ext" / "algorithms" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return folder


def run_beside(environment, plugin, *, first, code, folder):
    """Run code with a plugin on the path before the package, or behind it."""
    if first:
        return environment.run_code(code, folder, PYTHONPATH=str(plugin))
    path_file = environment.packages / "zz_plugin.pth"
    path_file.write_text(str(plugin))
    try:
        return environment.run_code(code, folder)
    finally:
        path_file.unlink()


OTHER = """
import evox.algorithms
class Other: ...
evox.algorithms.Other = Other
evox.algorithms.__all__.append("Other")
"""


@pytest.mark.parametrize("first", [True, False], ids=["before ours", "behind ours"])
def test_a_plugin_that_is_a_namespace_too_is_found_beside_ours(environment, tmp_path, first):
    plugin = write_plugin(tmp_path / "plugin", "Other.py", OTHER)
    code = "from evox.algorithms import *; Other, EvoGM, SurrogateEvoGM, PSO"
    run_beside(environment, plugin, first=first, code=code, folder=tmp_path)


@pytest.mark.parametrize("first", [True, False], ids=["before ours", "behind ours"])
def test_a_plugin_that_is_no_namespace_hides_ours_only_from_evox_algorithms(
    environment, tmp_path, first
):
    plugin = write_plugin(tmp_path / "plugin", "__init__.py", "class Other: ...")
    code = (
        "import evox; evox.algorithms.Other, evox.problems.LoRAMergeProblem; "
        "from evox_evogm import EvoGM; from evox.algorithms import *"
    )
    run_beside(environment, plugin, first=first, code=code, folder=tmp_path)


def test_a_type_checker_follows_imports_into_problems(environment, tmp_path):
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "from evox_evogm.problems import LoRAMergeProblem\n"
        "reveal_type(LoRAMergeProblem.score_together)\n"
    )
    checker = [sys.executable, "-m", "mypy", "--python-executable", environment.python]
    cache = ROOT / ".mypy_cache"  # torch is checked once, as `make types` does it
    shown = run(*checker, "--cache-dir", cache, snippet, folder=tmp_path)
    assert 'Revealed type is "def (self: evox_evogm.problems.lora_merge.LoRAMergeProblem' in shown
