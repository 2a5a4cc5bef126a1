"""Bases that bitsandbytes quantizes: hooks add experts as plain peft does, nothing is merged."""

import pytest
import torch
from builders import build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.inference import quantized_base
from evox_evogm.problems.inference.quantized_base import check_quantization, quantized_as

pytestmark = pytest.mark.language_model

SUMS = tuple(Example(f"sum {i}", f"{i} + {i * i} =", str(i + i * i)) for i in range(5))
GOLD = Task("gold", "1", "gold_log_probability", SUMS)
WIDE = {"hidden_size": 64, "intermediate_size": 128}  # blocks of 64 weights share a scale


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    build_model(**WIDE).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folders(make_adapter):
    return [make_adapter(name, build_model(**WIDE), seed=seed) for seed, name in enumerate("ab")]


def make_problem(base, folders, **settings):
    options = {"dtype": torch.float32, "device": "cpu", **settings}
    return LoRAMergeProblem(str(base), folders, [GOLD], **options)


def scores_by_peft(base, adapter, quantization):
    """Mean log-probabilities of the answers, by plain transformers and peft, one at a time."""
    from peft import PeftModel
    from transformers import BitsAndBytesConfig

    options = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    if quantization == "4bit":
        compute = torch.float32
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        options["bnb_4bit_compute_dtype"] = compute
    model = AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=BitsAndBytesConfig(**options),
        dtype=torch.float32,
        device_map={"": "cpu"},
    )
    for layer in model.modules():  # no kernel in bfloat16
        layer.support_avx512bf16_for_cpu = False
    model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = build_tokenizer()
    scores = []
    for example in SUMS:
        prompt = tokenizer(example.prompt, add_special_tokens=False).input_ids
        answer = tokenizer(f" {example.target}", add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        scores.append(float(chosen.mean()))
    return torch.tensor(scores)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_merges_on_a_quantized_base_score_as_plain_peft(base, folders, quantization, tmp_path):
    pytest.importorskip("bitsandbytes")
    problem = make_problem(base, folders, quantization=quantization)
    assert quantized_as(problem.language_model.model) == quantization
    pop = torch.tensor([[0.7, -0.4], [0.0, 1.0]])
    found = problem.score_together(pop)["gold"]
    problem.choose_modes(2)
    assert problem.modes == {"gold": "unmerged"}
    assert problem.export(pop[0], tmp_path / "merge") < 1e-5
    again = make_problem(base, folders, quantization=quantization)
    for one in (problem, again):  # the export has left the base as it was
        torch.testing.assert_close(one.score_together(pop)["gold"], found, atol=1e-6, rtol=0)
    for row, adapter in enumerate([tmp_path / "merge", folders[1]]):
        expected = scores_by_peft(base, adapter, quantization)
        torch.testing.assert_close(found[row], expected, atol=1e-3, rtol=1e-3)
    plain = make_problem(base, folders).score_together(pop)["gold"]
    assert (plain - found).abs().max() > 1e-2
    (note,) = [note for note in problem.notes if "quantized" in note]
    assert f"the base is quantized ({quantization}): all scores are those of the quantized" in note
    with pytest.raises(ValueError, match=r"mode: expected auto or unmerged on a base that is quan"):
        make_problem(base, folders, quantization=quantization, mode="merged")


def test_what_cannot_be_quantized_is_refused(base, folders, monkeypatch):
    with pytest.raises(ValueError, match="quantization: expected one of 8bit, 4bit or nothing, fo"):
        make_problem(base, folders, quantization="2bit")
    with pytest.raises(
        ValueError, match="quantization: expected a base that is loaded here, found"
    ):
        check_quantization("4bit", build_model(), images=False)
    with pytest.raises(ValueError, match="quantization: expected a language model as base, found"):
        check_quantization("4bit", "google/vit", images=True)
    monkeypatch.setattr(quantized_base, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="found that it is not installed: pip install bitsandbytes"
    ):
        make_problem(base, folders, quantization="8bit")


def test_a_base_that_was_saved_quantized_is_known_and_goes_unmerged_only(folders):
    model = build_model(**WIDE)
    assert quantized_as(model) is None
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert quantized_as(model) == "gptq"
    settings = {"tokenizer": build_tokenizer()}
    with pytest.raises(ValueError, match=r"found 'merged': merges cannot go into quantized weig"):
        LoRAMergeProblem(model, folders, [GOLD], mode="merged", **settings)
    problem = LoRAMergeProblem(model, folders, [GOLD], **settings)
    problem.choose_modes(3)
    assert problem.modes == {"gold": "unmerged"}
    assert any("quantized (gptq)" in note for note in problem.notes)
