"""What a base cannot take is said when a task is tokenized, once, with task and example."""

import logging

import pytest
import torch
from builders import build_model, build_tokenizer

from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.requests import requests_of, tokenize_task
from evox_evogm.problems.tasks.task import Example, Task

pytestmark = pytest.mark.language_model

LOGGER = "evox_evogm.problems.tasks.check_tokens"


def task_of(metric, *sizes, **settings):
    """Examples with prompts of so many tokens, whose answers are four tokens, " two"."""
    examples = []
    for number, size in enumerate(sizes):
        examples.append(Example(f"id{number}", chr(ord("a") + number) * size, "two"))
    return Task("t", "1", metric, tuple(examples), **settings)


@pytest.mark.parametrize(
    ("metric", "settings", "room"),
    [
        ("gold_log_probability", {}, 4),
        ("exact_match", {"max_new_tokens": 2}, 5),  # the answer and its end
        ("exact_match", {"max_new_tokens": 9}, 8),  # the last new token is not read
        ("exact_match", {"max_new_tokens": 9, "match": "contains"}, 8),
    ],
)
def test_a_text_beyond_the_positions_of_the_base_is_refused(metric, settings, room):
    scorer = LanguageModel(build_model("gpt2", n_positions=64), build_tokenizer())
    fits = task_of(metric, 10, 64 - room, **settings)
    assert tokenize_task(fits, scorer) == 10 + 64 - room
    task = task_of(metric, 10, 65 - room, 99, **settings)
    message = "task 't', example 'id2': expected at most 64 tokens, .*2 of 3 examples"
    with pytest.raises(ValueError, match=message):
        tokenize_task(task, scorer)


@torch.no_grad()
def test_the_longest_text_that_fits_is_scored(make_adapter):
    model = build_model("gpt2", n_positions=64)
    settings = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    folder = make_adapter("one", model, **settings)
    task = task_of("exact_match", 56, max_new_tokens=9)
    problem = LoRAMergeProblem(model, [folder], [task], tokenizer=build_tokenizer())
    assert problem.evaluate(torch.ones(2, 1)).isfinite().all()
    long = task_of("exact_match", 57, max_new_tokens=9)
    with pytest.raises(ValueError, match="found 65 with the answer"):
        problem.score_tasks(torch.ones(1), [long])


def test_a_text_beyond_what_the_base_was_trained_on_is_logged_once(caplog):
    scorer = LanguageModel(build_model(max_position_embeddings=64), build_tokenizer())
    task = task_of("gold_log_probability", 10, 61, 99)
    with caplog.at_level(logging.WARNING, LOGGER):
        tokenize_task(task_of("gold_log_probability", 10, 60), scorer)
        assert not caplog.messages
        for _ in range(2):
            tokenize_task(task, scorer)
    (message,) = caplog.messages
    assert message.startswith(
        "task 't', example 'id2': found 103 tokens with the answer, more than the 64 that the base "
        "was trained on (2 of 3 examples)"
    )


@pytest.mark.parametrize("place", ["prompt", "answer"])
def test_a_token_without_a_row_in_the_base_is_refused(place):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    prompt, answer = ("a <tool>", "b") if place == "prompt" else ("a", "<tool> b")
    scorer = LanguageModel(build_model(), tokenizer)
    task = Task("t", "1", "gold_log_probability", (Example("7", prompt, answer),))
    message = (
        "task 't', example '7': expected tokens with a row .* of 257, found '<tool>' with id 257"
    )
    with pytest.raises(ValueError, match=message):
        tokenize_task(task, scorer)
    with pytest.raises(ValueError, match=message):
        requests_of(task, scorer)


def test_an_end_of_text_without_a_row_is_refused_where_it_is_read():
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<eot>"})
    scorer = LanguageModel(build_model(), tokenizer)
    example = Example("7", "a", "b")
    with pytest.raises(ValueError, match="found '<eot>' with id 257"):
        tokenize_task(Task("t", "1", "exact_match", (example,)), scorer)
    assert tokenize_task(Task("t", "1", "gold_log_probability", (example,)), scorer) == 1


def test_an_answer_that_joins_the_prompt_is_logged_once(caplog):
    from tokenizer_kinds import fast
    from tokenizers import Tokenizer, models

    vocabulary = {token: index for index, token in enumerate([" ", *"abcde", "c ", "c d", "<end>"])}
    merges = [("c", " "), ("c ", "d")]
    tokenizer = fast(Tokenizer(models.BPE(vocabulary, merges)), eos_token="<end>")
    examples = (Example("0", "ab", "de"), Example("1", "abc", "de"))
    scorer = LanguageModel(build_model(vocab_size=len(vocabulary)), tokenizer)
    with caplog.at_level(logging.WARNING, LOGGER):
        tokenize_task(Task("t", "1", "gold_log_probability", examples), scorer)
    (message,) = caplog.messages
    assert message.startswith("task 't', example '1': found a token that holds the end of the")
