"""One base under several names is taken and noted; names that contradict each other are refused."""

import pytest
import torch
from builders import build_model
from sick_adapters import fit_folders, load_experts, with_tensors

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters.same_base import contradict, hub_id, note_on_names

SNAPSHOT = "/root/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/d04e592b"
ONE_BASE = [
    ("/data/models/Llama-3.1-8B", "/home/me/checkpoints/base"),
    ("meta-llama/Llama-3.1-8B", "/data/ckpt/llama31_base"),
    ("meta-llama/Llama-3.1-8B", "models/base"),
    ("models/one", "checkpoints/checkpoint-500"),
    ("meta-llama/Llama-3.1-8B", SNAPSHOT),
    ("meta-llama/Llama-3.1-8B", "unsloth/Llama-3.1-8B"),
    ("meta-llama/Llama-3.1-8B", "unsloth/Meta-Llama-3.1-8B"),
    ("meta-llama/Llama-3.1-8B", "unsloth/Meta-Llama-3.1-8B-bnb-4bit"),
    ("unsloth/llama-3-8b", "unsloth/llama-3-8b-bnb-4bit"),
    ("meta-llama/Meta-Llama-3-8B", "unsloth/llama-3-8b-bnb-4bit"),
    ("meta-llama/Meta-Llama-3-8B-Instruct", "casperhansen/llama-3-8b-instruct-awq"),
    ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct-AWQ"),
    ("Qwen/Qwen2.5-7B-Instruct", "unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit"),
    ("Qwen/Qwen2.5-7B-Instruct", "mlx-community/Qwen2.5-7B-Instruct-4bit"),
    ("meta-llama/Llama-3.1-8B-Instruct", "a/Meta-Llama-3.1-8B-Instruct-quantized.w4a16"),
    ("meta-llama/Llama-3.1-8B-Instruct", "a/Meta-Llama-3.1-8B-Instruct-FP8-dynamic"),
    ("meta-llama/Llama-2-7b-hf", "TheBloke/Llama-2-7B-GPTQ"),
    ("mistralai/Mistral-7B-v0.1", "unsloth/mistral-7b-bnb-4bit"),
]
OTHER_BASES = [
    ("meta-llama/Meta-Llama-3-8B", "meta-llama/Llama-3.1-8B"),
    ("Qwen/Qwen2.5-Coder-7B", "unsloth/Qwen2.5-7B-Instruct-bnb-4bit"),
    ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B"),
    ("meta-llama/Llama-2-7b-hf", "mistralai/Mistral-7B-v0.1"),
    ("Qwen/Qwen2.5-7B", SNAPSHOT),
    ("org/tiny", "org/huge"),
]


@pytest.fixture
def named(make_adapter, edit_config):
    """A function that makes adapters of the base, each of which gives it another name."""

    def make(*bases):
        folders = []
        for index, base in enumerate(bases):
            folder = make_adapter(f"expert{index}", seed=index)
            edit_config(folder, base_model_name_or_path=base)
            folders.append(folder)
        return folders

    return make


@pytest.mark.parametrize(("one", "other"), ONE_BASE)
def test_names_that_may_stand_for_one_base_are_taken(one, other):
    assert not contradict(one, other)
    assert not contradict(other, one)


@pytest.mark.parametrize(("one", "other"), OTHER_BASES)
def test_hub_ids_with_different_words_contradict_each_other(one, other):
    assert contradict(one, other)
    assert contradict(other, one)


def test_a_snapshot_in_the_cache_is_its_hub_id():
    assert hub_id(SNAPSHOT) == "meta-llama/Llama-3.1-8B"
    windows = SNAPSHOT.replace("/", "\\")
    assert hub_id(windows) == "meta-llama/Llama-3.1-8B"
    assert hub_id("/data/models") is None


def test_a_folder_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("me/Llama-3.1-8B") == "me/Llama-3.1-8B"
    (tmp_path / "me/Llama-3.1-8B").mkdir(parents=True)
    assert hub_id("me/Llama-3.1-8B") is None


@pytest.mark.parametrize(
    "names",
    [
        ["", "org/tiny"],
        ["org/tiny", "org/Tiny"],
        ["org/Tiny", "/models/tiny/", ""],
        ["meta-llama/Llama-3.1-8B", SNAPSHOT],
    ],
)
def test_names_that_differ_in_nothing_are_not_noted(names):
    assert note_on_names(names) is None


def test_names_that_differ_are_noted_once(named, model, caplog):
    caplog.set_level("INFO", logger="evox_evogm")
    model.config._name_or_path = "/data/base"
    names = ["meta-llama/Llama-3.1-8B", "unsloth/Llama-3.1-8B-bnb-4bit", "meta-llama/Llama-3.1-8B"]
    fit = fit_folders(named(*names), model)
    expected = (
        "base: took /data/base, meta-llama/Llama-3.1-8B, unsloth/Llama-3.1-8B-bnb-4bit for one "
        "base model; its modules, shapes and vocabulary agree with all adapters"
    )
    assert fit.notes == [expected]
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_names_that_contradict_each_other_are_refused_unless_overruled(named, model):
    model.config._name_or_path = ""
    folders = named("org/tiny-1b", "org/tiny-2b")
    message = (
        r"expert 'expert1': expected the same base model as expert 'expert0' \(org/tiny-1b\), "
        "found org/tiny-2b; merge only adapters of one base, or set same_base to true"
    )
    with pytest.raises(ValueError, match=message):
        load_experts(folders, model)
    fit = fit_folders(folders, model, same_base=True)
    assert len(fit.experts) == 2
    assert "took org/tiny-1b, org/tiny-2b for one base model" in fit.notes[0]


def test_a_base_whose_name_contradicts_an_adapters_is_refused_unless_overruled(named, model):
    model.config._name_or_path = "org/tiny-1b"
    folders = named("org/tiny-2b")
    message = "expected an adapter of org/tiny-1b, found one of org/tiny-2b; load that base instead"
    with pytest.raises(ValueError, match=message):
        load_experts(folders, model)
    assert load_experts(folders, model, same_base=True)


def test_whatever_can_be_compared_counts_also_where_the_names_were_overruled(bench):
    def fewer_inputs(tensors):
        return {key: t[:, :8].contiguous() if "lora_A" in key else t for key, t in tensors.items()}

    folders = with_tensors(fewer_inputs)(bench)
    with pytest.raises(ValueError, match="it belongs to another base model"):
        load_experts(folders, bench.model, same_base=True)


def test_a_problem_takes_the_argument_and_keeps_the_notes(named, tokenizer):
    task = Task("t", "1", "gold_log_probability", (Example("0", "two", "four"),))
    folders = named("org/tiny-1b", "org/tiny-2b")
    with pytest.raises(ValueError, match="or set same_base to true"):
        LoRAMergeProblem(build_model(), folders, [task], tokenizer=tokenizer)
    problem = LoRAMergeProblem(
        build_model(), folders, [task], tokenizer=tokenizer, same_base=True, mode="unmerged"
    )
    assert "org/tiny-1b, org/tiny-2b" in problem.notes[0]
    assert torch.isfinite(problem.evaluate(torch.ones(1, 2))).all()
