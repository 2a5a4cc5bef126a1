"""A finished search has its result, whatever happens to its adapter, which can be made again."""

import json

import pytest
from builders import change_settings, history, merge

from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.population_scorer import PopulationScorer


@pytest.fixture
def small(project):
    """A project with a budget of one population."""
    change_settings(project, budget=4)
    return project


def export_worse(difference):
    """An export whose check finds a difference."""
    export = LoRAMergeProblem.export

    def exported(self, coefficients, folder, **names):
        export(self, coefficients, folder, **names)
        return difference

    return exported


def export_raising(error):
    """An export that ends in an error."""

    def raised(self, coefficients, folder, **names):
        raise error

    return raised


FAULTS = {
    "differs": (export_worse(0.5), "found weights that differ by 5.0e-01, over 1e-05 (relative)"),
    "is not a number": (export_worse(float("nan")), "found weights that differ by nan"),
    "raises": (export_raising(KeyError("lora_A")), "KeyError: 'lora_A'"),
    "finds the disk full": (
        export_raising(OSError(28, "No space left on device")),
        "OSError: [Errno 28] No space left on device",
    ),
}


def result_of(out):
    return json.loads((out / "result.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(("export", "words"), FAULTS.values(), ids=FAULTS)
def test_a_run_whose_adapter_fails_has_scores_result_and_report_and_says_so(
    small, capsys, monkeypatch, export, words
):
    with monkeypatch.context() as broken:
        broken.setattr(LoRAMergeProblem, "export", export)
        assert merge(small) == 4
    printed = capsys.readouterr()
    assert "EvoGM  " in printed.out and "plain peft" not in printed.out
    assert words in printed.err and printed.err.count("\n") == 1
    result = result_of(small / "out")
    assert len(result["scores"]) == 5 and words in result["adapter"]["error"]
    report = (small / "out" / "report.md").read_text()
    assert "**The adapter cannot be used.**" in report and "plain peft, it equals" not in report


def test_an_adapter_that_is_not_the_merge_is_marked_as_such(small, monkeypatch):
    monkeypatch.setattr(LoRAMergeProblem, "export", export_worse(0.5))
    assert merge(small) == 4
    card = (small / "out" / "adapter" / "README.md").read_text()
    assert card.startswith("# Do not use this adapter\n\nexpected the weights of the merge")


def test_an_export_that_failed_is_made_again_without_an_evaluation(small, capsys, monkeypatch):
    assert merge(small, out="whole") == 0
    with monkeypatch.context() as broken:
        broken.setattr(LoRAMergeProblem, "export", export_raising(KeyError("lora_A")))
        assert merge(small) == 4
        assert not (small / "out" / "adapter").exists()
        assert merge(small) == 4
    before = history(small / "out")
    capsys.readouterr()
    monkeypatch.setattr(PopulationScorer, "score", pytest.fail)
    assert merge(small) == 0
    printed = capsys.readouterr()
    assert "adapter: it could not be used: KeyError: 'lora_A'; making it again" in printed.err
    assert "loaded again with plain peft: equal to the merge within" in printed.out
    assert history(small / "out") == before
    made, whole = result_of(small / "out"), result_of(small / "whole")
    for result in (made, whole):
        del result["seconds"]
    assert made == whole
    for page in ("adapter/README.md", "adapter/adapter_config.json"):
        assert (small / "out" / page).read_text() == (small / "whole" / page).read_text()


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-7])


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("adapter_model.safetensors", cut_off, "is damaged or was changed"),
        ("adapter_model.safetensors", remove, "is missing"),
        ("adapter_config.json", cut_off, "is damaged or was changed"),
        ("adapter_config.json", remove, "is missing"),
    ],
)
def test_a_damaged_adapter_of_a_finished_run_is_made_again(
    small, capsys, monkeypatch, name, change, words
):
    assert merge(small) == 0
    path = small / "out" / "adapter" / name
    whole, result = path.read_bytes(), result_of(small / "out")
    change(path)
    capsys.readouterr()
    monkeypatch.setattr(PopulationScorer, "score", pytest.fail)
    assert merge(small) == 0
    found = f"evogm: adapter: {path} {words}; making it again from the coefficients\n"
    assert capsys.readouterr().err == found
    assert path.read_bytes() == whole
    assert result_of(small / "out") == result


def test_a_damaged_result_is_refused_in_one_sentence(small, capsys):
    assert merge(small) == 0
    for content in ("{", "[]", "{}", '{"scores": 3}'):
        (small / "out" / "result.json").write_text(content)
        capsys.readouterr()
        assert merge(small) == 2
        error = capsys.readouterr().err
        assert "result.json as evogm wrote it, found it damaged" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("bases", "expected"),
    [
        (("org/tiny", "org/tiny"), "org/tiny"),
        (("org/tiny", "/elsewhere/tiny"), "org/tiny"),
        (("org/tiny", "unsloth/tiny-bnb-4bit"), "{folder}/mine/base"),
        (("mine/base", "mine/base"), "{folder}/mine/base"),  # where the experts were trained
    ],
)
def test_the_adapter_names_a_base_that_plain_peft_can_load(small, edit_config, bases, expected):
    (small / "mine").mkdir()
    (small / "base").rename(small / "mine/base")
    change_settings(small, base="mine/base")
    for expert, base in zip(("first", "second"), bases, strict=True):
        edit_config(small / "experts" / expert, base_model_name_or_path=base)
    assert merge(small) == 0
    adapter = small / "out/adapter"
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == expected.format(folder=small)
    if named.startswith("/"):
        from peft import AutoPeftModelForCausalLM

        assert AutoPeftModelForCausalLM.from_pretrained(adapter)


def test_a_finished_run_makes_its_adapter_again_in_another_dtype(small, capsys, monkeypatch):
    import torch
    from safetensors.torch import load_file

    assert merge(small) == 0
    before = result_of(small / "out")
    assert before["adapter"]["dtype"] == "float32"
    change_settings(small, adapter_dtype="bfloat16")
    capsys.readouterr()
    monkeypatch.setattr(PopulationScorer, "score", pytest.fail)
    assert merge(small) == 0
    printed = capsys.readouterr()
    assert "adapter: it is in float32, where bfloat16 is wanted; making it again" in printed.err
    tensors = load_file(small / "out" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    result = result_of(small / "out")
    assert result["adapter"]["dtype"] == "bfloat16" and result["adapter"]["error"] is None
    assert 1e-4 < result["adapter"]["largest_relative_difference"] < 1e-2
    assert result["coefficients"] == before["coefficients"]
    assert merge(small) == 0
    assert "making it again" not in capsys.readouterr().err


def test_strict_licences_stop_a_run_before_its_first_evaluation(small, capsys):
    change_settings(small, strict_licences=True)
    assert merge(small) == 2
    error = capsys.readouterr().err
    assert "the licence of base, first, second is unknown" in error and error.count("\n") == 1
    assert not (small / "out").exists()
    for folder in (small / "base", small / "experts" / "first", small / "experts" / "second"):
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert merge(small) == 0
    assert "license: mit" in (small / "out" / "adapter" / "README.md").read_text()
