"""A LoRA that is trained on the dev questions, on a tiny random model."""

import json

import pytest
import torch
from builders import build_model

from benchmarks.compare import trained_lora
from benchmarks.compare.cases import Case
from benchmarks.compare.runs import read_runs
from benchmarks.compare.search import run_case
from benchmarks.compare.trained_lora import epochs_of, trained_adapter, try_rates
from benchmarks.static_merges.dense import mean_scores
from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.inference.language_model import LanguageModel

QUESTIONS = "abcdefghij"
TOKENS = torch.tensor([[5, 6, 7, 8]])


def make_task(name, answers):
    """A question a letter, with these answers."""
    examples = []
    for index, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=False)):
        examples.append(Example(str(index), f"{name}{question}=", answer))
    return Task(name, "1", "exact_match", tuple(examples))


@pytest.fixture
def base(model, tokenizer):
    return LanguageModel(model, tokenizer)


def greedy_text(model, tokenizer, prompt):
    """What transformers writes after a prompt."""
    tokens = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**tokens, do_sample=False, max_new_tokens=4, pad_token_id=0)
    return tokenizer.decode(
        written[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True
    ).strip()


@pytest.mark.parametrize(("budget", "epochs"), [(160, 53), (40, 13), (7, 2), (4, 1)])
def test_an_epoch_costs_three_evaluations_and_the_score_on_dev_one(budget, epochs):
    assert epochs_of(budget) == epochs


def test_a_budget_without_an_epoch_is_refused():
    with pytest.raises(ValueError, match="budget: expected at least 4, found 3"):
        epochs_of(3)


def test_the_adapter_learns_its_questions_and_is_scored_as_transformers_answers(base, tokenizer):
    task, others = make_task("x", ["u", "vw", "u", "w"]), make_task("y", ["u", "vw", "u", "w"])
    with trained_adapter(base, [task], epochs=60, lr=0.03, seed=1):
        scores = mean_scores(base, [task, others])
        for found in (task, others):
            right = 0
            for example in found.examples:
                right += greedy_text(base.model, tokenizer, example.prompt) == example.target
            assert scores[found.name] == right / 4
    assert scores["x"] == 1


def test_afterwards_the_base_is_the_base(base):
    with trained_adapter(base, [make_task("x", "uv")], epochs=2, lr=0.1, seed=1):
        assert not torch.equal(base.model(TOKENS).logits, build_model()(TOKENS).logits)
    torch.testing.assert_close(base.model(TOKENS).logits, build_model()(TOKENS).logits)


def test_a_seed_trains_the_same_adapter_again(base):
    logits = []
    for seed in (1, 1, 2):
        with trained_adapter(base, [make_task("x", "uv")], epochs=2, lr=0.1, seed=seed):
            logits.append(base.model(TOKENS).logits.detach())
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_a_rate_that_learns_answers_the_questions_held_back(base, tmp_path):
    dev = [make_task("x", "u" * 10)]
    rates, path = (0.0, 0.01), tmp_path / "rates"
    scores, seconds = try_rates(base, dev, rates, epochs=20, seed=1, path=path)
    assert scores == {"0": 0.0, "0.01": 1.0}
    assert seconds > 0


def test_an_interrupted_trial_goes_on_with_the_rates_that_are_left(base, tmp_path, monkeypatch):
    dev, path = [make_task("x", "u" * 10)], tmp_path / "rates.json"
    found = {"score": 0.25, "seconds": 1000.0}
    path.write_text(json.dumps({"0": found, "0.5": found}))  # of which one is no longer wanted
    trained = []
    run = trained_lora.trained_adapter

    def counted(*arguments, lr, **settings):
        trained.append(lr)
        return run(*arguments, lr=lr, **settings)

    monkeypatch.setattr(trained_lora, "trained_adapter", counted)
    expected = {"0": 0.25, "0.01": 1.0}
    scores, seconds = try_rates(base, dev, (0.0, 0.01), epochs=20, seed=1, path=path)
    assert scores == expected
    assert trained == [0.01]
    assert 1000 < seconds < 2000
    assert json.loads(path.read_text())["0.01"]["score"] == 1.0


def test_a_run_has_its_files_and_a_row_in_the_tables(
    tmp_path, monkeypatch, model, tokenizer, make_adapter
):
    dev, test = [make_task("x", "u" * 10)], [make_task("y", "u" * 5 + "v" * 5)]
    problem = LoRAMergeProblem(model, [make_adapter("expert")], dev, tokenizer=tokenizer)
    monkeypatch.setattr(trained_lora, "RATES", (0.0, 0.03))
    case = Case("tiny", "LoRA on dev", 0, n=1, budget=62)
    run_case(case, tmp_path, lambda _: (problem, test))
    result = json.loads(case.file(tmp_path, ".json").read_text())
    assert result["learning rate"] == 0.03
    assert result["held-back dev by learning rate"] == {"0": 0.0, "0.03": 1.0}
    # 20 epochs and a score on dev; for two rates the same on four fifths and on one.
    assert result["evaluations of trials"] == pytest.approx(2 * (60 * 0.8 + 0.2))
    assert result["evaluations"] == pytest.approx(61 + result["evaluations of trials"])
    runs = read_runs(case.file(tmp_path, "").parent)
    assert runs.scores("LoRA on dev", "dev").tolist() == [1.0]
    assert runs.scores("LoRA on dev", "test").tolist() == [0.5]
    assert runs.evaluations()["LoRA on dev"] == 61
    assert runs.best_at(60)["LoRA on dev"] == 0.0  # the base, until the training has ended
    assert runs.best_at(61)["LoRA on dev"] == 1.0
