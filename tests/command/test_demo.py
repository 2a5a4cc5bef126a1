"""What is shipped: the experts, their manifest and their tasks."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml

from evox_evogm.command import cli
from evox_evogm.command.experts import expert_folders
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.tasks import read_task
from evox_evogm.problems.adapters.check_fit import check_together
from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.adapters.stacked_modules import stack_experts
from evox_evogm.problems.inference.base_model import (
    SMOLLM2,
    default_dtype,
    load_base,
    weights_sha256,
)
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.metrics import score_task
from evox_evogm.problems.tasks.readers import split_of

MANIFEST = json.loads((cli.DEMO / "experts" / "manifest.json").read_text())
NEEDED = {"exact_match": 0.20, "choice_likelihood": 0.10}


def folders():
    return expert_folders("experts", cli.DEMO)


def test_at_least_eight_experts_are_shipped_and_each_is_in_the_manifest():
    assert len(folders()) >= 8 and set(folders()) == set(MANIFEST)
    kinds = [entry["file"] for entry in MANIFEST.values()]
    assert kinds.count(False) >= 4 and kinds.count(True) >= 3
    assert not {"scifact", "mmlu", "hellaswag", "gsm8k"} & set(MANIFEST)


def test_their_files_are_those_of_the_manifest_small_and_of_mixed_shapes():
    total = 0
    for name, folder in folders().items():
        weights = (folder / "adapter_model.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == MANIFEST[name]["sha256"]
        total += sum(path.stat().st_size for path in folder.iterdir())
    assert total <= 12e6
    experts = [read_expert(folder) for folder in folders().values()]
    check_together(experts)
    assert len({entry["rank"] for entry in MANIFEST.values()}) >= 3
    assert len({frozenset(expert.modules) for expert in experts}) >= 2


def test_each_beat_the_base_by_its_rule_on_at_least_100_unseen_examples():
    for name, entry in MANIFEST.items():
        assert entry["test_examples"] >= 100, name
        gain = entry["expert_scores"][entry["metric"]] - entry["base_scores"][entry["metric"]]
        assert gain == pytest.approx(entry["gain"]) and gain >= NEEDED[entry["metric"]], name


@pytest.mark.parametrize("file", ["demo.yaml", "full.yaml"])
def test_the_tasks_of_the_demo_are_those_of_its_experts_and_unseen_in_training(file):
    settings, folder = read_settings(cli.DEMO / file)
    pairs = [read_task(entry, folder) for entry in settings.tasks]
    assert {dev.name: dev.metric for dev, _ in pairs} == {
        name: entry["metric"] for name, entry in MANIFEST.items()
    }
    for entry, tasks in zip(settings.tasks, pairs, strict=True):
        for split, task in zip(("dev", "test"), tasks, strict=True):
            assert len(task.examples) == getattr(entry, split)
    for path in (folder / "tasks").glob("*.json"):
        for split, rows in json.loads(path.read_text()).items():
            assert {split_of(row["question"]) for row in rows} == {split}


def test_the_settings_files_say_the_same_but_for_sizes():
    small, full = (
        yaml.safe_load((cli.DEMO / file).read_text()) for file in ("demo.yaml", "full.yaml")
    )
    assert small["base"] == SMOLLM2 and small["experts"] == "experts"
    assert small.pop("budget") < full.pop("budget")
    for settings in (small, full):
        for entry in settings["tasks"]:
            del entry["dev"], entry["test"]
    assert small == full


def test_the_former_option_quick_is_answered_in_one_sentence(capsys):
    assert cli.main(["demo", "--quick"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("evogm: demo: expected --full or nothing, found --quick")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_shipped_experts_score_what_the_manifest_says():
    settings, folder = read_settings(cli.DEMO / "full.yaml")
    model, tokenizer = load_base(SMOLLM2, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert {weights_sha256(model)} == {entry["base_sha256"] for entry in MANIFEST.values()}
    names, model = (
        list(folders()),
        model.to(default_dtype(torch.device("cpu"))),
    )  # others compute in bfloat16 for hours
    modules = stack_experts(
        [read_expert(path) for path in folders().values()], model.dtype, torch.device("cpu")
    )
    language_model = LanguageModel(model, tokenizer)
    for entry in settings.tasks:
        _, test = read_task(entry.model_copy(update={"test": 100}), folder)
        with merged(model, modules, torch.eye(len(names))[names.index(test.name)]):
            score = float(score_task(test, language_model).mean())
        expected = MANIFEST[test.name]["expert_scores"][test.metric]
        assert score == pytest.approx(expected, abs=0.15)  # three standard errors of 100 examples
        with merged(model, modules, torch.zeros(len(names))):
            base_score = float(score_task(test, language_model).mean())
        assert score - base_score >= NEEDED[test.metric] / 2


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_an_adapter_that_peft_loads(tmp_path, capsys):
    assert cli.main(["demo", "--budget", "9", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0] for line in shown.splitlines() if line}
    assert {"base", "average", "RegMean", "SurrogateEvoGM", *MANIFEST} <= rows
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["adapter"]["largest_relative_difference"] < 1e-5
    assert Path(tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
