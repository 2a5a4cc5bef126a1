"""What is noted of whole models: tokenizers, chat templates, licences and odd weights."""

import json

import pytest
import torch
from builders import build_model
from safetensors.torch import load_file, save_file

from evox_evogm.command.licences import licences_of
from evox_evogm.problems import Example, LoRAMergeProblem, Task

TASK = Task("sums", "1", "gold_log_probability", (Example("0", "1 + 1 =", "2"),))


@pytest.mark.lengthy
def test_tokenizers_licences_and_odd_weights_of_whole_models_are_found(write_model, tokenizer):
    folders = [write_model(name, seed) for seed, name in enumerate("abc")]
    for folder in folders:
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    settings = json.loads((folders[1] / "tokenizer_config.json").read_text())
    settings |= {"chat_template": "{{ messages }}", "eos_token": "<|im_end|>"}
    (folders[1] / "tokenizer_config.json").write_text(json.dumps(settings))
    (folders[1] / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    weights = load_file(folders[2] / "model.safetensors")
    for name, parameter in build_model().named_parameters():
        if name in weights:
            weights[name] = parameter.data + 30 * (weights[name] - parameter.data)
    save_file(weights, folders[2] / "model.safetensors", metadata={"format": "pt"})
    problem = LoRAMergeProblem(build_model(), folders, [TASK], tokenizer=tokenizer)
    notes = "\n".join(problem.notes)
    assert "chat template: found one with b, and none with the base" in notes
    assert "expert 'b': its eos_token is '<|im_end|>'" in notes
    assert "expert 'c': its changes are" in notes and "expert 'a'" not in notes
    report = licences_of(problem)
    found = {part.name: part.licence for part in report.parts}
    assert found == {"base": None, "a": "mit", "b": "cc-by-nc-4.0", "c": "mit"}
    assert torch.isfinite(problem.score_tasks(torch.full((3,), 0.1))["sums"]).all()
