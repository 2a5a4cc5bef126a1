"""The settings of the runs of small bases on the paper's eight tasks, on made-up sets."""

from pathlib import Path

import pytest
from builders_swarm_eval import write_swarm_eval

from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.tasks import read_tasks

EXAMPLES = Path(__file__).parents[2] / "benchmarks" / "examples"
RUNS = {
    "smollm2_likelihood": (42, 240),
    "smollm2_published": (43, 220),
    "qwen_coder_likelihood": (30, 120),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_tasks_have_the_sizes_of_the_page(tmp_path, name):
    settings, _ = read_settings(EXAMPLES / "eight_tasks" / f"{name}.yaml", [])
    (tmp_path / "run").mkdir()
    (tmp_path / "paper").mkdir()
    write_swarm_eval(tmp_path / "paper" / "swarm_eval", dev=12, test=60)
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')
    tasks = read_tasks(settings.tasks, tmp_path / "run", str(base))
    sizes = []
    for split in (tasks.dev, tasks.test):
        sizes.append(sum(len(task.examples) for task in split))
    assert tuple(sizes) == RUNS[name]
