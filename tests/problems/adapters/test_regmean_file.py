"""Regressed experts are computed once, and again where anything that they depend on differs."""

from dataclasses import replace

import pytest
import torch
from builders import build_model

from evox_evogm.problems import Example, Task
from evox_evogm.problems.adapters import regmean_file
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.adapters.regmean_file import regress_once
from evox_evogm.problems.adapters.regmean_unlabelled import regress
from evox_evogm.problems.inference.language_model import LanguageModel

TASK = Task("sums", "1", "exact_match", (Example("1", "1+1=", "2"), Example("2", "2+3=", "5")))
OTHER = replace(TASK, examples=(Example("1", "1+1=", "2"), Example("2", "4+3=", "7")))


@pytest.fixture
def inputs(make_adapter, tokenizer):
    experts = [read_expert(make_adapter("first", seed=1)), read_expert(make_adapter("second"))]
    return LanguageModel(build_model(), tokenizer), experts


@pytest.fixture
def count(monkeypatch):
    """The kinds of regression that were computed."""
    kinds = []

    def counted(model, experts, regmean, tasks):
        kinds.append(regmean)
        return regress(model, experts, regmean, tasks)

    monkeypatch.setattr(regmean_file, "regress", counted)
    return kinds


def factors(experts):
    return [factors.a for expert in experts for factors in expert.modules.values()]


@pytest.mark.parametrize("regmean", ["prompts", {"first": [TASK], "second": [OTHER]}])
def test_a_second_process_reads_the_factors_of_the_first(tmp_path, inputs, count, regmean):
    path = tmp_path / "regmean.safetensors"
    for _ in range(2):
        found = regress_once(path, *inputs, regmean, [TASK])
        for ours, right in zip(
            factors(found), factors(regress(*inputs, regmean, [TASK])), strict=True
        ):
            assert torch.equal(ours, right)
    assert len(count) == 1


def test_other_texts_experts_or_weights_of_the_base_are_regressed_anew(tmp_path, inputs, count):
    path = tmp_path / "regmean.safetensors"
    model, experts = inputs
    regress_once(path, model, experts, "prompts", [TASK])
    regress_once(path, model, experts, "prompts", [OTHER])
    regress_once(path, model, experts[::-1], "prompts", [OTHER])
    with torch.no_grad():
        next(iter(model.model.parameters()))[0, 0] += 1
    regress_once(path, model, experts[::-1], "prompts", [OTHER])
    regress_once(path, model, experts[::-1], "prompts", [OTHER])
    assert len(count) == 4


def test_a_damaged_file_is_made_again(tmp_path, inputs, count, caplog):
    path = tmp_path / "regmean.safetensors"
    regress_once(path, *inputs, "prompts", [TASK])
    path.write_bytes(path.read_bytes()[:100])
    regress_once(path, *inputs, "prompts", [TASK])
    assert len(count) == 2 and "damaged" in caplog.text
    regress_once(path, *inputs, "prompts", [TASK])
    assert len(count) == 2
