"""Runs whose experts are whole models: looked at, checked, merged, cut off, exported, scored."""

import json

import pytest
import torch
from builders import build_model, change_settings, history, interrupt_searches, merge
from builders_checkpoints import changed
from safetensors.torch import load_file

from evox_evogm.command import cli

SETTINGS = {
    "mode": "auto",
    "experts": {"whole": "models/whole", "part": "models/part", "lora": "experts/first"},
    "algorithm": "SurrogateEvoGM",
    "search": {},
    "pop_size": 3,
    "budget": 7,
}


@pytest.fixture
def models(project, tokenizer):
    """A project with two whole models beside the adapters, which are experts with one of these."""
    for seed, (name, only) in enumerate({"whole": "", "part": "mlp"}.items()):
        changed(build_model(), seed, only=only).save_pretrained(project / "models" / name)
        tokenizer.save_pretrained(project / "models" / name)
    change_settings(project, **SETTINGS)
    return project


@pytest.mark.lengthy
def test_a_run_that_was_cut_off_goes_on_and_its_merge_is_exported_as_a_model(
    models, monkeypatch, capsys
):
    assert merge(models, out="whole") == 0
    with monkeypatch.context() as patched:
        interrupt_searches(patched, steps=1)
        assert merge(models, out="cut") == 130
    assert merge(models, out="cut") == 0
    assert history(models / "cut") == history(models / "whole")
    result = json.loads((models / "cut" / "result.json").read_text())
    assert result["adapter"] is None and result["checkpoints"] == ["part", "whole"]
    assert any("writes the merge as a whole model" in note for note in result["notes"])
    assert not (models / "cut" / "adapter").exists()
    assert "3 experts of" in (models / "cut" / "report.html").read_text()

    capsys.readouterr()
    assert cli.main(["export", str(models / "cut")]) == 0
    out = models / "cut" / "export-model"
    assert f"the merged model: {out}" in capsys.readouterr().out
    coefficients = result["coefficients"]
    expected = summed_by_hand(models, coefficients)
    for name, value in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    card = (out / "README.md").read_text()
    assert "a weighted sum of 3 experts of one base" in card and "part, whole" in card

    assert cli.main(["export", str(models / "cut"), "--as", "adapter"]) == 2
    assert "found the full checkpoint 'part'" in capsys.readouterr().err
    words = ["base", "whole", str(out)]
    assert cli.main(["score", str(models / "run.yaml"), *words]) == 0
    shown = capsys.readouterr().out
    assert "whole" in shown and "export-model" in shown


def summed_by_hand(project, coefficients):
    """Base, differences and s B A from the files, in float64."""
    base = load_file(project / "base" / "model.safetensors")
    total = {name: value.double() for name, value in base.items()}
    for name in ("whole", "part"):
        for key, value in load_file(project / "models" / name / "model.safetensors").items():
            total[key] += coefficients[name] * (value.double() - base[key].double())
    folder = project / "experts" / "first"
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for key, a in tensors.items():
        if "lora_A" in key:
            b = tensors[key.replace("lora_A", "lora_B")]
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            scale = coefficients["lora"] * config["lora_alpha"] / config["r"]
            total[f"{module}.weight"] += scale * b.double() @ a.double()
    return total


def test_a_changed_model_under_the_same_name_is_noticed(models, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        interrupt_searches(patched, steps=1)
        assert merge(models) == 130
    changed(build_model(), 9).save_pretrained(models / "models" / "whole")
    assert merge(models) == 2
    assert "expert whole" in capsys.readouterr().err


def test_check_says_what_whole_models_differ_in(models, capsys):
    assert cli.main(["check", str(models / "run.yaml")]) == 0
    shown = capsys.readouterr().out
    mapped = "of differences, mapped from its files"
    assert f"expert: whole, full checkpoint, 21 of 21 tensors differ, 50.4 KiB {mapped}" in shown
    assert f"expert: part, full checkpoint, 6 of 21 tensors differ, 12.0 KiB {mapped}" in shown
    assert "expert: lora, rank 4, 4 modules" in shown


def test_init_writes_settings_for_a_folder_of_whole_models(models, capsys, monkeypatch):
    monkeypatch.chdir(models)
    assert cli.main(["init", "models", "--base", "base", "--out", "new.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "whole: full checkpoint, 21 tensors, 52.5 KiB, licence not said" in shown
    assert "part: 6 of 21 tensors differ from the base, 12.0 KiB of differences" in shown
    text = (models / "new.yaml").read_text()
    assert "whole: models/whole" in text and "regmean: true" not in text


def test_a_folder_of_whole_models_is_a_setting(models):
    from evox_evogm.command.experts import expert_folders

    found = expert_folders("models", models)
    assert found == {name: models / "models" / name for name in ("part", "whole")}


def test_gradients_of_whole_models_are_refused(models, capsys):
    change_settings(models, algorithm="GradientSearch", search=..., pop_size=...)
    assert merge(models) == 2
    assert "expected experts that are adapters for gradients" in capsys.readouterr().err
