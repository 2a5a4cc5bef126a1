"""A base with two adapters, loaded once: exports leave it as it was."""

import json
from types import SimpleNamespace

import pytest
import torch
from builders import build_model, build_tokenizer

from evox_evogm.command.task_settings import parse_task
from evox_evogm.command.tasks import read_tasks
from evox_evogm.problems import LoRAMergeProblem

EXPERTS = {
    "first": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "second": {"r": 2, "lora_alpha": 5, "target_modules": ["up_proj", "q_proj"]},
}


def pytest_collection_modifyitems(items):
    """Mark the tests that use the shared base."""
    for item in items:
        if {"shared", "problem"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.language_model)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The folder, the dev and test tasks, and the problem."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("exports")
    build_model().save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    for seed, (name, settings) in enumerate(EXPERTS.items()):
        torch.manual_seed(seed)
        wrapped = get_peft_model(build_model(), LoraConfig(task_type="CAUSAL_LM", **settings))
        for parameter_name, parameter in wrapped.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        wrapped.save_pretrained(folder / "experts" / name)
    for split, start in (("dev", 0), ("test", 10)):
        rows = [{"question": f"{i} + {i}", "answer": str(2 * i)} for i in range(start, start + 3)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = {"json_lines": "dev.jsonl", "test_file": "test.jsonl", "name": "sums"}
    tasks = read_tasks([parse_task({**entry, "metric": "gold_log_probability"})], folder)
    return SimpleNamespace(folder=folder, tasks=tasks, problem=make_problem(folder, tasks))


@pytest.fixture
def problem(shared):
    return shared.problem


@pytest.fixture
def tasks(shared):
    return shared.tasks


def make_problem(folder, tasks, **settings):
    """A problem over the base and the adapters in a folder."""
    folders = [folder / "experts" / name for name in EXPERTS]
    settings = {"mode": "unmerged", "dtype": torch.float32, "other_tasks": tasks.test, **settings}
    return LoRAMergeProblem(str(folder / "base"), folders, tasks.dev, **settings)
