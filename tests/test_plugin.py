"""How EvoX finds the plugin, in fresh interpreters: the order of imports is what is tested."""

import subprocess
import sys

import pytest


def run_python(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "code",
    [
        "import evox; evox.algorithms.EvoGM; evox.problems.LoRAMergeProblem",
        "from evox.algorithms import EvoGM; from evox.problems import LoRAMergeProblem",
        "from evox.algorithms import *; EvoGM; PSO",
        "from evox.problems import *; LoRAMergeProblem",
        "from evox_evogm import EvoGM; import evox; assert evox.algorithms.EvoGM is EvoGM",
        "from evox_evogm.problems import LoRAMergeProblem as P; import evox; assert evox.problems.LoRAMergeProblem is P",
        "import evox, sys; assert not {'transformers', 'peft', 'reasoning_gym'} & set(sys.modules)",
    ],
)
def test_import(code, tmp_path):
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_there_is_no_top_level_package_called_problems(tmp_path):
    assert "No module named 'problems'" in run_python("import problems", tmp_path).stderr


def test_algorithm_and_problems_do_not_import_each_other(tmp_path):
    algorithm = "import evox_evogm.algorithms.evogm, sys; assert 'evox_evogm.command.merge_run' not in sys.modules"
    assert run_python(algorithm, tmp_path).returncode == 0
    for module in ("lora_merge", "readers", "scoring", "base_model"):
        source = run_python(
            f"import evox_evogm.problems.{module} as m; print(open(m.__file__).read())", tmp_path
        ).stdout
        assert "Problem" in source or "Task" in source or "torch" in source
        assert (
            "from evox_evogm.algorithms.evogm" not in source
            and "from evox_evogm import" not in source
        )
