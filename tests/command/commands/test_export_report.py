"""`evogm export` and `evogm report` open a finished run by its folder alone."""

import json
import shutil

import pytest
import torch
from builders import build_model, change_settings, merge

from evox_evogm.command import cli
from evox_evogm.command.opened_run import settings_of_run


@pytest.fixture
def finished(project, capsys):
    change_settings(project, budget=4)
    assert merge(project) == 0
    capsys.readouterr()
    return project


@torch.no_grad()
def test_an_export_is_the_merge_of_the_run_for_plain_peft(finished, capsys):
    from peft import PeftModel

    out = finished / "out"
    assert cli.main(["export", str(out), "--dtype", "float32"]) == 0
    assert "loaded again: weights within" in capsys.readouterr().out
    tokens = torch.arange(1, 13)[None]
    logits = []
    for folder in ("adapter", "export-adapter"):
        model = PeftModel.from_pretrained(build_model(), out / folder)
        logits.append(model(tokens).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_a_rank_makes_a_compressed_adapter(finished, capsys):
    assert cli.main(["export", str(finished / "out"), "--rank", "1"]) == 0
    config = json.loads((finished / "out" / "export-compressed/adapter_config.json").read_text())
    assert config["r"] == 1 and "rank 1" in capsys.readouterr().out
    assert cli.main(["export", str(finished / "out"), "--rank", "1", "--as", "model"]) == 2
    assert "expected --rank and --tolerance with compressed" in capsys.readouterr().err


def test_settings_that_were_moved_have_to_be_given(finished, capsys):
    moved = finished.parent / f"{finished.name}-moved"
    shutil.copytree(finished, moved)
    shutil.rmtree(finished / "out")
    (finished / "run.yaml").rename(finished / "elsewhere")
    for name in ("base", "experts"):
        shutil.rmtree(finished / name)
    out = str(moved / "out")
    inputs = json.loads((moved / "out" / "inputs.json").read_text())
    inputs["settings_folder"] = str(finished / "gone")
    (moved / "out" / "inputs.json").write_text(json.dumps(inputs))
    assert settings_of_run(moved / "out", None)[1] == moved.resolve()  # it lies as it lay
    del inputs["settings_folder_from_here"]
    (moved / "out" / "inputs.json").write_text(json.dumps(inputs))
    assert cli.main(["export", out]) == 2
    assert "give the file by --settings" in capsys.readouterr().err
    assert cli.main(["export", out, "--settings", str(moved / "run.yaml")]) == 0


def test_reports_are_made_again_as_they_were(finished, capsys):
    out = finished / "out"
    before = {name: (out / name).read_text() for name in ("report.md", "report.html")}
    for name in before:
        (out / name).unlink()
    assert cli.main(["report", str(out)]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"reading the run in {out} ..." and "report.html" in last
    for name, text in before.items():
        assert (out / name).read_text() == text


def test_a_run_without_a_result_is_refused(finished, capsys):
    (finished / "out" / "result.json").unlink()
    for command in ("export", "report"):
        assert cli.main([command, str(finished / "out")]) == 2
        assert "expected a finished run, found one without result" in capsys.readouterr().err
    assert cli.main(["report", str(finished / "base")]) == 2
    assert "found no run in" in capsys.readouterr().err


def test_a_run_of_another_machine_is_exported_on_the_device_that_is_given(finished, capsys):
    config = finished / "out" / "config.yaml"
    text = config.read_text()
    assert "device: cpu" in text
    config.write_text(text.replace("device: cpu", "device: cuda:97"))
    assert cli.main(["export", str(finished / "out")]) == 2
    assert "cuda:97" in capsys.readouterr().err
    assert cli.main(["export", str(finished / "out"), "--device", "cpu"]) == 0
    assert (finished / "out" / "export-adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("runs/a", ["--public"], "expected --public with --push-to-hub, found it alone"),
        ("runs/a", ["--front", "0", "--from", "x.json"], "expected --front or --from, found both"),
        ("run.yaml", ["--front", "0"], "expected --front with the folder of a finished run"),
        ("run.yaml", ["--settings", "b.yaml"], "expected --settings with the folder of a finished"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tmp_path, monkeypatch, capsys, run, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("base: b\n")
    assert cli.main(["export", run, *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
