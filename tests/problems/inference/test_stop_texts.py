"""The tokens behind which texts that end an answer are looked for."""

import pytest
from builders import build_model, build_tokenizer

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.stop_texts import may_stop_after, stops


@pytest.mark.language_model
def test_a_text_is_decoded_only_after_a_token_that_may_end_it():
    model = LanguageModel(build_model(), build_tokenizer())
    (letter_e,), (letter_x,) = (model.tokenizer(letter)["input_ids"] for letter in "ex")
    half = model.tokenizer("\u00e9")["input_ids"][0]
    may_stop = may_stop_after(model, ("the", "\n"))
    assert may_stop(letter_e) and may_stop(half) and not may_stop(letter_x)
    assert may_stop_after(model, ("Q: ",))(letter_x)  # some tokenizers drop the blank of a token
    assert not may_stop_after(model, ())(letter_e) and not may_stop_after(model, ())(half)
    assert may_stop(model.end_token)  # of which nothing is written
    assert may_stop_after(model, ("",))(letter_x)  # which stands in every text


def test_any_of_the_ends_ends_a_text():
    assert stops("so\n", ("\n", "Q:")) and stops("Q:", ("\n", "Q:"))
    assert not stops("so Q", ("\n", "Q:")) and not stops("so", ())
