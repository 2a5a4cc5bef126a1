"""The output folder of each trainer is an expert as it is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub
from safetensors.torch import load_file
from sick_adapters import fit_folders

from evox_evogm.command.experts import expert_folders
from evox_evogm.command.named_adapters import named_adapters
from evox_evogm.problems.adapters.find_adapters import find_adapter
from evox_evogm.problems.adapters.notes_on_experts import notes_on_experts
from evox_evogm.problems.adapters.read_adapter import WEIGHTS, read_expert
from evox_evogm.problems.adapters.trainer_folders import adapters_in, checkpoints_in
from evox_evogm.problems.checkpoints.read_experts import read_any_expert

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin")
# What trainers write beside the adapter, in their output folder.
BESIDE = {
    "peft": ("README.md",),
    "trl": ("README.md", "training_args.bin", "chat_template.jinja", *TOKENIZER),
    "unsloth": ("README.md", "chat_template.jinja", *TOKENIZER),
    "axolotl": ("README.md", "config.json", "debug.log", "chat_template.jinja", *TOKENIZER),
    "llama_factory": (
        "README.md",
        "all_results.json",
        "train_results.json",
        "trainer_log.jsonl",
        "trainer_state.json",
        "training_args.bin",
        "training_loss.png",
        "chat_template.jinja",
        *TOKENIZER,
    ),
}
CHECKPOINTS = ("trl", "axolotl", "llama_factory")  # with folders `checkpoint-N` too
RUN = "v1-20250610-080000"  # of ms-swift, which begins a folder like this for every run


@pytest.fixture
def write(tmp_path, make_adapter, tokenizer):
    """A function that writes the output folder of a trainer; it and the adapter that is meant."""

    def write_beside(folder, names):
        for name in names:
            (folder / name).write_text("{}" if name.endswith(".json") else "other")
        if "tokenizer.json" in names:
            tokenizer.save_pretrained(folder)

    def write(trainer):
        output = tmp_path / "outputs" / trainer
        if trainer == "ms_swift":
            for run, steps in (("v0-20250609-120000", (900,)), (RUN, (50, 100, 9))):
                for step in steps:
                    folder = output / run / f"checkpoint-{step}"
                    shutil.move(make_adapter("one", seed=step), folder)
                    names = ("args.json", "additional_config.json", "README.md", *STATE)
                    write_beside(folder, names)
                write_beside(output / run, ("args.json", "logging.jsonl"))
                (output / run / "runs").mkdir()
            return output, output / RUN / "checkpoint-100"
        shutil.move(make_adapter("one", seed=1), output)
        write_beside(output, BESIDE[trainer])
        for step in (5, 10) if trainer in CHECKPOINTS else ():
            shutil.move(make_adapter("one", seed=step), output / f"checkpoint-{step}")
            write_beside(output / f"checkpoint-{step}", (*STATE, *TOKENIZER))
        return output, output

    return write


@pytest.mark.parametrize("trainer", [*BESIDE, "ms_swift"])
def test_the_output_folder_of_a_trainer_is_an_expert_as_it_is(trainer, write, model, edit_config):
    output, meant = write(trainer)
    if trainer == "unsloth":
        name = "unsloth/Qwen2.5-1.5B-Instruct-unsloth-bnb-4bit"
        fixed = {"base_model_class": "Qwen2ForCausalLM", "unsloth_fixed": True}
        edit_config(output, base_model_name_or_path=name, auto_mapping=fixed)
        model.config._name_or_path = "Qwen/Qwen2.5-1.5B-Instruct"
    expert = read_expert(output)
    assert (expert.name, expert.folder) == (trainer, meant)
    tensors = load_file(meant / WEIGHTS)
    for name, factors in expert.modules.items():
        assert torch.equal(factors.a, tensors[f"base_model.model.{name}.lora_A.weight"])
        assert torch.equal(factors.b, tensors[f"base_model.model.{name}.lora_B.weight"])
    fit = fit_folders([output], model)
    assert len(fit.experts[0].modules) == 4
    assert not any("probably different" in note for note in fit.notes)
    assert adapters_in(output.parent) == {trainer: meant}


def notes_of(expert):
    return notes_on_experts([expert], None)


def test_the_last_checkpoint_is_taken_and_said(write):
    output, _ = write("ms_swift")
    expert = read_expert(output)
    (note,) = notes_of(expert)
    assert note == f"expert 'ms_swift' ({expert.folder}): took checkpoint-100, the last of 3"
    assert not notes_of(read_expert(expert.folder))  # which was given itself
    assert read_expert(output / RUN).folder == expert.folder
    assert [path.name for path in checkpoints_in(output / RUN)] == [
        "checkpoint-9",
        "checkpoint-50",
        "checkpoint-100",
    ]


def test_the_best_checkpoint_is_named_where_the_trainer_knows_it(write):
    output, meant = write("ms_swift")
    best = str(output / RUN / "checkpoint-50")
    (meant / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best}))
    (note,) = notes_of(read_expert(output))
    assert note.endswith("the last of 3; the trainer found checkpoint-50 to be the best")


def test_a_configuration_whose_weights_are_in_a_checkpoint_is_passed_over(write):
    """Some trainers leave the configuration on top, and the weights in checkpoints only."""
    output, _ = write("axolotl")
    (output / WEIGHTS).unlink()
    assert read_expert(output).folder == output / "checkpoint-10"


def test_the_checkpoints_of_one_training_are_no_experts_of_a_run(write):
    output, _ = write("ms_swift")
    message = "found the checkpoints of one training; a list with this folder takes the last"
    for folder in (output, output / RUN):
        with pytest.raises(ValueError, match=message):
            adapters_in(folder)


@pytest.fixture
def write_model(model):
    """A function that saves a whole model to a folder."""

    def write(folder):
        model.save_pretrained(folder)
        return folder

    return write


@pytest.mark.parametrize("place", ["", "experts"])
def test_whole_models_are_experts_beside_adapters(place, write_model, make_adapter, tmp_path):
    mix = tmp_path / "mix"
    full = write_model(mix / place / "full")
    write_model(mix / "base")
    assert adapters_in(mix) == {"full": full}
    lora = Path(shutil.move(make_adapter("lora"), mix / place / "lora"))
    assert adapters_in(mix) == {"full": full, "lora": lora}
    assert expert_folders("mix", tmp_path) == {"full": full, "lora": lora}
    assert [named.folder for named in named_adapters([str(mix)])] == [full, lora]


def test_checkpoints_of_a_full_training_are_one_expert(write_model, tmp_path):
    output = tmp_path / "tuned"
    for step in (500, 1000):
        write_model(output / f"checkpoint-{step}")
    with pytest.raises(ValueError, match="found the checkpoints of one training; a list with"):
        expert_folders("tuned", tmp_path)
    assert expert_folders(["tuned"], tmp_path) == {"tuned": output / "checkpoint-1000"}
    expert = read_any_expert(output)
    assert (expert.name, expert.folder) == ("tuned", output / "checkpoint-1000")
    (note,) = notes_of(expert)
    assert note.endswith("took checkpoint-1000, the last of 2")
    write_model(output)  # as trainers do at the end
    assert read_any_expert(output).folder == output
    assert adapters_in(tmp_path) == {"tuned": output}
    with pytest.raises(ValueError, match="expected a folder of folders in .* found a model itself"):
        expert_folders("tuned", tmp_path)


def test_a_pickle_of_the_trainer_is_not_taken_for_weights(make_adapter):
    output = make_adapter("one")
    (output / WEIGHTS).unlink()
    (output / "training_args.bin").write_text("a pickle")
    with pytest.raises(ValueError, match=f"expected {WEIGHTS}, found none; save it"):
        read_expert(output)


def test_a_training_on_the_hub_gives_its_last_checkpoint(write, hub_cache, monkeypatch):
    output, meant = write("ms_swift")
    hub = FakeHub(hub_cache)
    hub.add("org/training", output)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    found = find_adapter("org/training", "here")
    assert found.name == "checkpoint-100"
    assert (found / WEIGHTS).read_bytes() == (meant / WEIGHTS).read_bytes()
    weights = [name for name in hub.downloaded if Path(name).name == WEIGHTS]
    assert weights == [f"{RUN}/checkpoint-100/{WEIGHTS}"]
