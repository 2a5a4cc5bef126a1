"""One base under several names is taken and noted; names of different models are warned of."""

import pytest
import torch
from builders import build_model
from sick_adapters import fit_folders, load_experts, with_tensors

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters.same_base import (
    contradict,
    hub_id,
    name_in_export,
    note_on_names,
)

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


WARNING = (
    "base: took org/tiny-1b, org/tiny-2b for one base model; its modules, shapes and vocabulary "
    "agree with all adapters, but org/tiny-1b ({}) and org/tiny-2b ({}) are probably different "
    "models, and adapters that were trained on different models may merge badly; leave out those "
    "of another base, or set same_base to true if these names stand for one"
)


def test_adapters_whose_names_contradict_each_other_are_taken_with_a_warning(named, model, caplog):
    caplog.set_level("INFO", logger="evox_evogm")
    model.config._name_or_path = "/data/base"
    fit = fit_folders(named("org/tiny-1b", "org/tiny-2b"), model)
    assert len(fit.experts) == 2
    (note,) = fit.notes
    said = WARNING.format("expert 'expert0'", "expert 'expert1'")
    assert note == said.replace("took ", "took /data/base, ")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", note)
    ]


def test_a_base_whose_name_contradicts_an_adapters_is_taken_with_a_warning(named, model):
    model.config._name_or_path = "org/tiny-1b"
    fit = fit_folders(named("org/tiny-1b", "org/tiny-2b"), model)
    assert fit.notes == [WARNING.format("the base", "expert 'expert1'")]


def test_a_user_who_says_that_the_names_stand_for_one_base_is_not_warned(named, model, caplog):
    model.config._name_or_path = ""
    fit = fit_folders(named("org/tiny-1b", "org/tiny-2b"), model, same_base=True)
    (note,) = fit.notes
    assert note.endswith("its modules, shapes and vocabulary agree with all adapters")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_name_in_a_warning_steers_no_terminal(named, model):
    model.config._name_or_path = ""
    steering = named("org/tiny-1b", SNAPSHOT.replace("d04e592b", "\x1b[2J\n"))
    (note,) = fit_folders(steering, model).notes
    assert "probably different" in note and note.isprintable()


@pytest.mark.parametrize("same_base", [False, True])
def test_whatever_can_be_compared_decides_whatever_the_names_are(bench, same_base):
    def fewer_inputs(tensors):
        return {key: t[:, :8].contiguous() if "lora_A" in key else t for key, t in tensors.items()}

    folders = with_tensors(fewer_inputs)(bench)
    with pytest.raises(ValueError, match="it belongs to another base model"):
        load_experts(folders, bench.model, same_base=same_base)


@pytest.mark.parametrize("same_base", [False, True])
def test_a_problem_takes_the_argument_and_keeps_the_notes(named, tokenizer, same_base):
    task = Task("t", "1", "gold_log_probability", (Example("0", "two", "four"),))
    problem = LoRAMergeProblem(
        build_model(),
        named("org/tiny-1b", "org/tiny-2b"),
        [task],
        tokenizer=tokenizer,
        same_base=same_base,
        mode="unmerged",
    )
    (note,) = problem.notes
    assert "org/tiny-1b, org/tiny-2b" in note
    assert ("probably different models" in note) != same_base
    assert torch.isfinite(problem.evaluate(torch.ones(1, 2))).all()


@pytest.mark.parametrize(
    ("base", "adapters", "expected"),
    [
        ("org/tiny", ["org/other", "org/tiny-bnb-4bit"], "org/tiny"),
        ("/data/tiny", ["org/tiny", "/mine/tiny", "", "ORG/tiny"], "org/tiny"),
        ("/data/tiny", [SNAPSHOT], "meta-llama/Llama-3.1-8B"),
        ("/data/tiny", ["org/tiny", "org/tiny-bnb-4bit"], "/data/tiny"),
        ("/data/tiny", ["/elsewhere/tiny", ""], "/data/tiny"),
        ("/data/tiny", [], "/data/tiny"),
        (SNAPSHOT, ["unsloth/Llama-3.1-8B"], "meta-llama/Llama-3.1-8B"),
        ("", ["/mine/tiny", "/mine/tiny"], "/mine/tiny"),
        ("", [""], ""),
    ],
)
def test_an_export_names_the_hub_id_of_the_base_or_its_path(base, adapters, expected):
    assert name_in_export(base, adapters) == expected


def test_a_relative_path_in_adapters_is_no_hub_id_for_an_export(tmp_path):
    base = tmp_path / "mine/base"
    base.mkdir(parents=True)
    assert name_in_export(str(base), ["mine/base"], tmp_path) == str(base)
    assert name_in_export(str(base), ["mine/other"], tmp_path) == "mine/other"
