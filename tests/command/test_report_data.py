"""What a run writes for its report, against scores and texts that plain transformers give."""

import json
import os

import pytest
import torch
from builders import change_settings, history, interrupt_searches, merge

from evox_evogm.command.report_data import (
    best_expert,
    command_line,
    shorten,
    wants_contributions,
)
from evox_evogm.command.scores import ScoreRow


@pytest.fixture
def data(project):
    """The result and the data for the report of a run of two experts and two tasks."""
    assert merge(project) == 0
    out = project / "out"
    assert (out / "report.html").is_file() and (out / "figures" / "scores.svg").is_file()
    result = json.loads((out / "result.json").read_text())
    return result, json.loads((out / "report_data.json").read_text())


def plain_merge(project, coefficients):
    """The base with the sum of two adapters in its weights, by plain peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(project / "base")
    names = list(coefficients)
    wrapped = PeftModel.from_pretrained(model, project / "experts" / names[0], names[0])
    wrapped.load_adapter(project / "experts" / names[1], names[1])
    weights = list(coefficients.values())
    wrapped.base_model.add_weighted_adapter(names, weights, "sum", combination_type="cat")
    wrapped.base_model.set_adapter("sum")
    return wrapped.eval()


@torch.no_grad()
def sum_scores(model, tokenizer, project):
    """The mean log-probability of the tokens of the right answer to each dev question."""
    scores = []
    for line in (project / "dev.jsonl").read_text().splitlines():
        question = json.loads(line)
        prompt = tokenizer.encode(f"Question: {question['question']}\nAnswer:")
        answer = tokenizer.encode(f" {question['answer']}")
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        log_probabilities = logits.log_softmax(-1)[range(len(answer)), answer]
        scores.append(float(log_probabilities.mean()))
    return scores


def test_each_expert_is_left_out_of_the_merge(project, data, tokenizer):
    result, found = data
    coefficients = result["coefficients"]
    full = sum_scores(plain_merge(project, coefficients), tokenizer, project)
    assert found["contributions"]["merge"]["sums"] == pytest.approx(sum(full) / 4, abs=1e-4)
    for name in coefficients:
        without = {**coefficients, name: 0.0}
        scores = sum_scores(plain_merge(project, without), tokenizer, project)
        entry = found["contributions"]["without"][name]
        assert entry["scores"]["sums"] == pytest.approx(sum(scores) / 4, abs=1e-4)
        assert abs(sum(scores) - sum(full)) > 0.1
        differences = torch.tensor(full) - torch.tensor(scores)
        error = float(differences.std()) / 4**0.5
        assert entry["errors"]["sums"] == pytest.approx(error, abs=1e-4)


def test_the_answers_shown_are_those_of_plain_generation(project, data, tokenizer):
    result, found = data
    from transformers import AutoModelForCausalLM

    models = {
        "base": AutoModelForCausalLM.from_pretrained(project / "base"),
        "merge": plain_merge(project, result["coefficients"]),
    }
    kinds = set()
    for example in found["examples"]["shown"]:
        kinds.add(example["metric"])
        tokens = torch.tensor([tokenizer.encode(example["prompt"])])
        for name, model in models.items():
            answer = example["answers"][name]
            if example["metric"] == "choice_likelihood":
                check_choice(model, tokenizer, example["prompt"], answer)
                continue
            generated = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=16,
                do_sample=False,
                pad_token_id=0,
            )[0, tokens.shape[1] :]
            assert answer["text"] == tokenizer.decode(generated, skip_special_tokens=True)
    assert kinds == {"choice_likelihood", "gold_log_probability"}


@torch.no_grad()
def check_choice(model, tokenizer, prompt, answer):
    """The answer is the likelier of the keys A and B, with its share of the probability."""
    log_probabilities = []
    for key in "AB":
        tokens = tokenizer.encode(f"{prompt} {key}")
        logits = model(torch.tensor([tokens])).logits[0, -3:-1].log_softmax(-1)
        log_probabilities.append(float(logits[[0, 1], tokens[-2:]].sum()))
    shares = torch.tensor(log_probabilities).softmax(0)
    place = int(shares.argmax())
    assert answer["text"] == ("A: yes", "B: no")[place]
    assert answer["share"] == pytest.approx(float(shares[place]), abs=1e-4)


def test_contributions_can_be_switched_off(project):
    change_settings(project, contributions=False)
    assert merge(project) == 0
    found = json.loads((project / "out" / "report_data.json").read_text())
    assert "contributions" not in found and found["examples"]["shown"]


def test_contributions_are_evaluated_by_default_where_they_are_cheap():
    assert wants_contributions(None, 16) and not wants_contributions(None, 17)
    assert wants_contributions(True, 64) and not wants_contributions(False, 2)


def test_the_best_expert_is_that_of_dev():
    nan = float("nan")
    rows = [ScoreRow("base", "base", {"a": 9.0}, {"a": 0.0})]
    for dev in (nan, 0.25, 0.5, 0.375):
        rows.append(ScoreRow("x", "expert", {"a": dev}, {"a": 1 - dev}))
    assert best_expert(rows) == 2
    with pytest.raises(ValueError, match="expected those of an expert, found none"):
        best_expert(rows[:2])


def test_a_long_text_lacks_its_middle():
    assert shorten("0123456789", 10) == "0123456789"
    assert shorten("0123456789ab", 6) == "01 [... 6 characters ...] 89ab"


def test_the_command_is_that_of_the_process(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/evogm", "merge", "my run.yaml", "--out", "x"])
    assert command_line() == "evogm merge 'my run.yaml' --out x"
    monkeypatch.setattr("sys.argv", ["/usr/bin/pytest", "-q"])
    assert command_line() is None


@pytest.mark.lengthy
def test_contributions_can_be_added_to_a_finished_run(project):
    change_settings(project, contributions=False)
    assert merge(project) == 0
    out = project / "out"
    before = history(out)
    assert "contributions" not in json.loads((out / "report_data.json").read_text())
    change_settings(project, contributions=True)
    assert merge(project) == 0
    found = json.loads((out / "report_data.json").read_text())["contributions"]
    assert set(found["without"]) == {"first", "second"}
    assert history(out) == before


@pytest.mark.lengthy
def test_a_report_of_an_earlier_result_is_not_left_beside_another(project, monkeypatch):
    assert merge(project, "--budget", "4") == 0
    page = project / "out" / "report.html"
    page.write_text("of another result")
    os.utime(page, ns=(0, 0))
    assert merge(project, "--budget", "4") == 0
    assert "of another result" not in page.read_text()
    with monkeypatch.context() as interrupting:
        interrupt_searches(interrupting, 2)
        assert merge(project, "--budget", "12") == 130
    assert not page.exists() and not (project / "out" / "report.md").exists()
