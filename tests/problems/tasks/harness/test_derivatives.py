"""Derivatives of harness margins are those of central differences on plain transformers."""

import json
from types import SimpleNamespace

import pytest
import torch
from builders import build_model, build_tokenizer
from harness_tasks import QUESTION, write_adapter, write_task
from safetensors.torch import load_file

from evox_evogm.problems import LoRAMergeProblem, read_lm_eval
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.trained_lora import is_trainable

pytestmark = [pytest.mark.language_model, pytest.mark.lengthy]
POINT = torch.tensor([[0.6, -0.3]], dtype=torch.float64)
STEP = 1e-3


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("derivatives")
    folders = [write_adapter(folder / "one", 1), write_adapter(folder / "two", 2, r=2)]
    tasks = folder / "tasks"
    for kind in ("choices", "targets", "answers", "rolling"):
        write_task(tasks, kind, kind, count=2)
    rows = [json.loads(line) for line in (tasks / "test.jsonl").read_text().splitlines()]
    return SimpleNamespace(folders=folders, tasks=str(tasks), rows=rows)


def add_adapters(model, folders, coefficients):
    """Add lambda_k s_k B_k A_k to the weights."""
    for folder, coefficient in zip(folders, coefficients, strict=True):
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        for name, a in tensors.items():
            if "lora_A" in name:
                b = tensors[name.replace("lora_A", "lora_B")]
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                scale = coefficient * config["lora_alpha"] / config["r"]
                model.get_submodule(module).weight.data += scale * b.double() @ a.double()
    return model


def log_likelihoods(model, prompt, text):
    """Of the tokens of a text behind a prompt; a byte is a token."""
    tokenizer = build_tokenizer()
    ids, size = tokenizer(prompt + text)["input_ids"], len(tokenizer(prompt)["input_ids"])
    logits = model(torch.tensor([ids])).logits[0, size - 1 : -1].double()
    return logits.log_softmax(-1)[range(len(ids) - size), ids[size:]]


@torch.no_grad()
def plain_margins(project, coefficients, metric):
    """What is differentiated, by its definition."""
    model = add_adapters(build_model().double(), project.folders, coefficients)
    margins = []
    for row in project.rows:
        prompt = QUESTION.replace("{{question}}", row["question"])
        if metric == "acc of targets":
            log_p = log_likelihoods(model, prompt, row["answer"])
            margins.append(-torch.logsumexp((1 - log_p.exp()).log() - log_p, 0))
            continue
        values = []
        for choice in row["choices"]:
            value = log_likelihoods(model, prompt, f" {choice}").sum()
            values.append(value / len(choice) if metric == "acc_norm" else value)
        gold = values.pop(row["gold"])
        margins.append(gold - torch.logsumexp(torch.stack(values), 0))
    return torch.stack(margins)


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc of targets"])
def test_derivatives_are_those_of_central_differences(project, metric):
    name = "targets" if metric == "acc of targets" else "choices"
    _, task = read_lm_eval(name, metric=metric.split()[0], include_path=project.tasks)
    problem = LoRAMergeProblem(
        build_model(), project.folders, [task], tokenizer=build_tokenizer(), objectives="gradients"
    )
    found = problem.scorer.differentiate(POINT.float(), [task]).derivatives[name][0]
    for column, step in enumerate(STEP * torch.eye(2, dtype=torch.float64)):
        above = plain_margins(project, POINT[0] + step, metric)
        below = plain_margins(project, POINT[0] - step, metric)
        expected = (above - below) / (2 * STEP)
        torch.testing.assert_close(found[:, column].double(), expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    "name, metric", [("answers", "exact_match,whole"), ("rolling", "word_perplexity")]
)
def test_other_metrics_have_none(project, name, metric):
    dev, _ = read_lm_eval(name, include_path=project.tasks)
    expected = f"task '{name}': expected a task with derivatives for gradients, .* {metric} is not"
    with pytest.raises(ValueError, match=expected):
        LoRAMergeProblem("nowhere", project.folders, [dev], tokenizer=None, objectives="gradients")
    model = LanguageModel(build_model(), build_tokenizer())
    with pytest.raises(ValueError, match=f"task '{name}': its metric {metric} is not one of"):
        dev.score(model, derivatives=torch.zeros(len(dev.examples), 2))


@pytest.mark.parametrize(
    ("name", "metric", "trainable"),
    [
        ("choices", "acc", True),
        ("choices", "acc_norm", True),
        ("targets", "acc", True),
        ("answers", "exact_match", True),
        ("targets", "perplexity", False),
        ("rolling", "word_perplexity", False),
    ],
)
def test_tasks_that_are_right_or_wrong_can_be_trained_on(project, name, metric, trainable):
    dev, _ = read_lm_eval(name, metric=metric, include_path=project.tasks)
    assert is_trainable(dev) == trainable
