"""The problem of some settings has what they say, and its device is one that is here."""

import pytest
import torch
from builders import change_settings

from evox_evogm.command.experts import expert_folders
from evox_evogm.command.load_problem import load_problem, resolve_device
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.sources import base_of_settings
from evox_evogm.command.tasks import read_tasks


def test_the_problem_is_as_the_settings_say(project):
    change_settings(project, dtype="float32", batch_tokens=64, max_memory=0.5, mode="merged")
    (project / "template.jinja").write_text("Q {{ messages[0].content }}")
    change_settings(project, chat_template_file="template.jinja")
    settings, folder = read_settings(project / "run.yaml")
    base, tasks = base_of_settings(settings, folder), read_tasks(settings.tasks, folder)
    experts = expert_folders(settings.experts, folder)
    problem = load_problem(settings, folder, base, experts, tasks, groups="layer")
    model = problem.language_model
    assert model.model.dtype == torch.float32 and model.batch_tokens == 64
    assert (problem.n_experts, len(problem.groups.names)) == (2, 2)  # two layers
    assert set(problem.modes.values()) == {"merged"}
    assert [task.name for task in problem.tasks] == ["sums", "quiz"]
    assert "Q " in model.prompts.chat_template.text("?")


def test_a_device_is_one_that_torch_can_use_here(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(
        ValueError,
        match="^device: expected one that torch .*, found 'gpu': it is no kind of device",
    ):
        resolve_device("gpu")
