"""Settings of generated answers, and where a text ends."""

import pytest
import torch
from builders import build_model, build_tokenizer, record_passes

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.stop_texts import cut
from evox_evogm.problems.tasks.harness.answers import generate
from evox_evogm.problems.tasks.harness.generation import Generation, parse_generation


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, Generation(256, ())),
        ({"until": "\n", "temperature": 0.0}, Generation(256, ("\n",))),
        ({"until": ["a", ""], "max_tokens": 5, "max_gen_toks": 7}, Generation(7, ("a",))),
        ({"do_sample": False, "temperature": 0.5, "top_p": 0.9}, Generation(256, ())),
    ],
)
def test_settings_are_those_of_hflm(settings, expected):
    assert parse_generation(settings) == expected


def test_a_text_ends_before_the_first_of_its_ends():
    assert cut("one two\nthree", ("two", "\n")) == "one "
    assert cut("one", ("two",)) == "one"


@pytest.fixture(scope="module")
def written():
    """A model, a prompt, and the text that plain transformers writes behind it, token by token."""
    model, tokenizer = build_model(), build_tokenizer()
    prompt = tuple(tokenizer("What is it?")["input_ids"])
    ids = model.generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, pad_token_id=0
    )[0, len(prompt) :]
    return LanguageModel(model, tokenizer), prompt, ids.tolist()


@pytest.mark.language_model
def test_an_end_of_several_tokens_ends_the_text_and_the_decoding(written):
    model, prompt, tokens = written
    text = model.decode(tokens)
    place = next(
        place
        for place in range(4, 20)
        if "\ufffd" not in text[place : place + 2] and text[place : place + 2].isascii()
    )
    end = text[place : place + 2]
    sizes = record_passes(model)
    assert generate(model, Generation(24, (end,)), [prompt], [0]) == [text.split(end)[0]]
    assert len(sizes) < 24
