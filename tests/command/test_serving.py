"""The guide to serving: its code runs, and the files are what servers ask for."""

import json
import re
from pathlib import Path

import pytest
import torch
from builders import build_model, change_settings, merge
from guides import HUB_BASE, ROOT, blocks, code_files, commands, run_python, run_shell
from safetensors.torch import load_file

from evox_evogm.command.exports.exported import server_setting

GUIDE = ROOT / "evox_evogm" / "command" / "SERVING.md"
TOKENS = torch.arange(1, 25)[None]
# `LoRAConfig.max_lora_rank` in vLLM's documentation, without 1, which no merge of several has.
RANKS_OF_VLLM = [8, 16, 32, 64, 128, 256, 320, 512]


@pytest.fixture
def finished(project, monkeypatch):
    """A finished run in `runs/mine`, in the folder that is the current one."""
    change_settings(project, budget=4)
    assert merge(project, out="runs/mine") == 0
    monkeypatch.chdir(project)
    for name, code in code_files(GUIDE).items():
        Path(name).write_text(code.replace(HUB_BASE, "base"))
    return project


@torch.no_grad()
def summed(folder, scale_of):
    """The logits of the base with scale B A added to each weight of an adapter."""
    model = build_model()
    tensors = load_file(Path(folder, "adapter_model.safetensors"))
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = tensors[key.replace("lora_A", "lora_B")].float()
            model.get_submodule(module).weight += scale_of(module) * b @ a.float()
    return model(TOKENS).logits


@pytest.mark.lengthy
@torch.no_grad()
def test_all_that_can_run_here_runs_and_computes_one_merge(finished, capsys):
    for code in blocks(GUIDE, "bash"):
        assert set(run_shell(code)) == {0}
    shown = capsys.readouterr().out
    settings = re.findall(r"--max-lora-rank (\d+)", shown)
    assert settings == ["8", "8"]  # of ranks 4 and 2
    assert "vllm serve runs/mine/export-model" in shown
    alone = run_python(Path("with_peft.py").read_text(), "with_peft.py")["model"](TOKENS).logits
    whole = run_python(Path("whole.py").read_text(), "whole.py")["model"](TOKENS).logits
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone, build_model()(TOKENS).logits, atol=1e-2)
    assert capsys.readouterr().out.count("Question: 1 + 1\nAnswer:") == 2

    # What vLLM asks of the adapter, and what it makes of it.
    config = json.loads(Path("runs/mine/adapter/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["bias"] == "none"
    assert not config.get("modules_to_save") and not config.get("use_dora")
    assert not config["use_rslora"] and config["r"] <= RANKS_OF_VLLM[0]
    kinds = {name.rsplit(".", 1)[-1] for name in config["target_modules"]}
    assert kinds <= {"q_proj", "v_proj", "up_proj", "o_proj"}  # those of the experts
    scale = config["lora_alpha"] / config["r"]  # vLLM's, of all modules
    served = summed("runs/mine/adapter", lambda module: scale)
    torch.testing.assert_close(served, alone, rtol=1e-4, atol=1e-4)


def test_the_table_of_ranks_is_what_exports_say():
    text = GUIDE.read_text()
    rows = re.findall(r"^\| (?:up to|\d+ to) (\d+) \| (\d+)\b", text, flags=re.MULTILINE)
    assert [int(setting) for _, setting in rows] == RANKS_OF_VLLM
    below = 0
    for largest, setting in rows:
        assert largest == setting
        for rank in (below + 1, int(largest)):
            assert server_setting(rank).endswith(f"--max-lora-rank {setting}")
        below = int(largest)
    assert "more than vLLM takes" in server_setting(below + 1)


def test_the_lines_for_vllm_are_those_that_an_export_says():
    (code,) = blocks(GUIDE, "sh")
    serve, ask = commands(code)
    assert " ".join(serve).startswith(server_setting(64).removeprefix("rank 64: "))
    name, _, folder = serve[-1].partition("=")
    assert folder == "runs/mine/export-adapter"  # where `evogm export` puts it
    body = json.loads(ask[ask.index("-d") + 1])
    assert body["model"] == name
