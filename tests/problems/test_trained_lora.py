"""A LoRA trained on labelled examples, compared with plain transformers and plain peft."""

import pytest
import torch
from builders import build_model, two_adapters

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.requests import requests_of
from evox_evogm.problems.trained_lora import (
    Training,
    add_gradients,
    check_trainable,
    cost_of_training,
    fresh_adapter,
    hold_back,
    merged_adapter,
    scores_by_example,
    train,
)

TOKENS = torch.tensor([[5, 6, 7, 8]])
CHOICES = (("A", "yes"), ("B", "no"))


def make_task(name, answers, metric="exact_match"):
    """A question a letter, with these answers."""
    examples = []
    for index, answer in enumerate(answers):
        choices = CHOICES if metric == "choice_likelihood" else ()
        examples.append(Example(str(index), f"{name} {'abcdefghij'[index]} =", answer, choices))
    return Task(name, "1", metric, tuple(examples))


@pytest.fixture
def base(model, tokenizer):
    return LanguageModel(model, tokenizer)


def plain_loss(model, requests):
    """The mean loss of answer tokens, by a pass of transformers for each row."""
    losses = []
    for prompt, answer in requests:
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
        predicted = logits[len(prompt) - 1 : -1]
        losses.append(
            torch.nn.functional.cross_entropy(predicted, torch.tensor(answer), reduction="none")
        )
    return torch.cat(losses).mean()


@pytest.mark.language_model
@pytest.mark.parametrize(
    ("architecture", "max_memory"),
    [("llama", 2**31), ("llama", 1), ("qwen2", 2**31), ("gemma", 1), ("gpt2", 2**31)],
)
def test_loss_and_gradients_are_those_of_plain_transformers(architecture, max_memory, tokenizer):
    model = build_model(architecture)
    base = LanguageModel(model, tokenizer, max_memory=max_memory)
    tasks = [make_task("x", ["u", "vw", "uvw"]), make_task("q", "AB", "choice_likelihood")]
    requests = [request for task in tasks for request in requests_of(task, base)]
    with fresh_adapter(base, Training(0.1, 1, seed=3)) as wrapped, torch.enable_grad():
        weights = [weight for weight in wrapped.parameters() if weight.requires_grad]
        for weight in weights:  # B begins as 0, which would hide the gradients of A
            torch.nn.init.normal_(weight.data, std=0.1)
        loss = plain_loss(wrapped, requests)
        expected = torch.autograd.grad(loss, weights)
        found = add_gradients(base, requests)
        assert found == pytest.approx(float(loss), rel=1e-5)
        for weight, gradient in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.lengthy
@torch.no_grad()
def test_it_learns_its_questions_and_is_scored_as_transformers_answers(base, tokenizer):
    task, others = make_task("x", ["u", "vw", "u", "w"]), make_task("y", ["u", "vw", "u", "w"])
    with fresh_adapter(base, Training(0.03, 40, seed=1)):
        epochs = list(train(base, [task], Training(0.03, 40, seed=1)))
        scores = scores_by_example(base, [task, others])
        for found in (task, others):
            right = []
            for example in found.examples:
                tokens = tokenizer(example.prompt, return_tensors="pt")
                written = base.model.generate(
                    **tokens, do_sample=False, max_new_tokens=4, pad_token_id=0
                )
                reply = written[0, tokens["input_ids"].shape[1] :]
                text = tokenizer.decode(reply, skip_special_tokens=True)
                right.append(float(text.strip() == example.target))
            assert scores[found.name] == right
    assert epochs == list(range(1, 41))
    assert scores["x"] == [1, 1, 1, 1]


def test_afterwards_the_base_and_its_flags_are_as_before(base):
    base.model.train()
    flags = [weight.requires_grad for weight in base.model.parameters()]
    state = torch.get_rng_state()
    with fresh_adapter(base, Training(0.1, 2)):
        list(train(base, [make_task("x", "uv")], Training(0.1, 2)))
        assert not torch.equal(base.model(TOKENS).logits, build_model()(TOKENS).logits)
    torch.testing.assert_close(base.model(TOKENS).logits, build_model()(TOKENS).logits)
    assert [weight.requires_grad for weight in base.model.parameters()] == flags
    assert base.model.training and torch.equal(torch.get_rng_state(), state)


def test_a_seed_trains_the_same_adapter_again(base):
    logits = []
    for seed in (1, 1, 2):
        with fresh_adapter(base, Training(0.1, 2, seed=seed)):
            list(train(base, [make_task("x", "uv")], Training(0.1, 2, seed=seed)))
            logits.append(base.model(TOKENS).logits.detach())
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_training_may_start_from_a_merge(architecture, make_adapter, tokenizer, tmp_path):
    from peft import PeftModel

    folders = two_adapters(architecture, make_adapter)
    task = make_task("x", ["u", "vw", "u"])
    model = build_model(architecture)
    problem = LoRAMergeProblem(model, folders, [task], tokenizer=tokenizer)
    point = torch.tensor([0.5, -0.25])
    problem.export(point, tmp_path / "merge")
    plain = PeftModel.from_pretrained(build_model(architecture), tmp_path / "merge")
    base = problem.language_model
    with merged_adapter(problem, point):
        before = base.model(TOKENS).logits.detach()
        torch.testing.assert_close(before, plain(TOKENS).logits.detach(), rtol=1e-4, atol=1e-5)
        (right, *_) = scores_by_example(base, [task]).values()
        assert right == pytest.approx(problem.score_tasks(point)["x"].tolist())
        requests = requests_of(task, base)
        with torch.no_grad():
            first = plain_loss(base.model, requests)
        list(train(base, [task], Training(0.05, 8)))
        with torch.no_grad():
            assert plain_loss(base.model, requests) < first - 0.1
    torch.testing.assert_close(model(TOKENS).logits, build_model(architecture)(TOKENS).logits)


def test_every_fifth_example_is_held_back_and_each_is_in_one_part():
    tasks = [make_task("x", "123"), make_task("y", "1234567"), make_task("z", "1")]
    kept, held_back = hold_back(tasks)
    ids = {}
    for part, found in (("kept", kept), ("held back", held_back)):
        ids[part] = [(task.name, example.id) for task in found for example in task.examples]
    assert ids["held back"] == [("y", "1"), ("y", "6")]  # the fifth and the tenth of eleven
    everything = [(task.name, example.id) for task in tasks for example in task.examples]
    assert sorted(ids["kept"] + ids["held back"]) == everything


def test_an_epoch_counts_as_three_evaluations_as_gradients_of_a_search_do():
    assert cost_of_training(6) == 18
    assert cost_of_training(6, 0.8) == pytest.approx(14.4)


class Judged:
    name, metric, examples = "judged", "function", ()


def test_tasks_without_right_answers_to_learn_are_left_out(base):
    logits = []
    for tasks in ([make_task("x", "uv")], [Judged(), make_task("x", "uv")]):
        training = Training(0.1, 2)
        with fresh_adapter(base, training):
            list(train(base, tasks, training))
            logits.append(base.model(TOKENS).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_tasks_that_all_lack_right_answers_are_refused():
    with pytest.raises(ValueError, match="found task 'judged' with function"):
        check_trainable([Judged(), Judged()])
