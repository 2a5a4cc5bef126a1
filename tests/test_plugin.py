"""How EvoX finds the plugin, in fresh interpreters: the order of imports is what is tested."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_python(code, folder):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "code",
    [
        "import evox, sys; evox.algorithms.EvoGM; evox.problems.LoRAMergeProblem; "
        "assert not {'transformers', 'peft', 'reasoning_gym'} & set(sys.modules); "
        "from evox.algorithms import *; EvoGM; GradientSearch; SurrogateEvoGM; PSO; "
        "from evox.problems import *; LoRAMergeProblem; numerical",
        "from evox.algorithms import EvoGM, SurrogateEvoGM; assert EvoGM is not SurrogateEvoGM",
        "from evox_evogm import EvoGM; import evox; assert evox.algorithms.EvoGM is EvoGM",
        "from evox_evogm.problems import LoRAMergeProblem as P; import evox; "
        "assert evox.problems.LoRAMergeProblem is P",
    ],
    ids=["evox", "evox.algorithms", "evox_evogm", "evox_evogm.problems"],
)
@pytest.mark.lengthy
def test_whatever_is_imported_first_the_classes_are_registered(code, tmp_path):
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_there_is_no_top_level_package_called_problems(tmp_path):
    assert "No module named 'problems'" in run_python("import problems", tmp_path).stderr


def test_plugin_folders_are_namespaces_whose_modules_are_named_like_their_classes():
    plugin = ROOT / "evox_evogm" / "_evox_ext"
    names = sorted(str(path.relative_to(plugin)) for path in plugin.rglob("*.py"))
    assert names == [
        "algorithms/EvoGM.py",
        "algorithms/GradientSearch.py",
        "algorithms/SurrogateEvoGM.py",
        "problems/LoRAMergeProblem.py",
    ]


def imported_modules(folder):
    """The names of the modules that the files of a folder import."""
    names = set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
    return names


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("evox_evogm/algorithms", ("problems", "command", "baselines", "resume")),
        ("evox_evogm/baselines", ("problems", "command", "resume")),
        ("evox_evogm/resume", ("problems", "command", "baselines", "algorithms")),
        ("problems", ("command", "baselines", "algorithms", "resume")),
    ],
)
def test_rooms_import_one_way(folder, forbidden):
    names = imported_modules(folder) - {"evox_evogm.resume.atomic_write"}  # of files, for all
    assert any(name.startswith("torch") for name in names)
    assert not names & {"evox_evogm", "problems", "benchmarks", "tests"}
    for name in names:
        room = name.removeprefix("evox_evogm.").split(".")[0]
        assert not name.startswith("evox_evogm.") or room not in forbidden, name
