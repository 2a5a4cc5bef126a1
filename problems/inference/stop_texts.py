"""Texts that end a generated answer, and the tokens behind which they have to be looked for."""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evox_evogm.problems.inference.language_model import LanguageModel

HALF_CHARACTER = "\ufffd"  # what a tokenizer writes for bytes that are no whole character


def stops(text: str, until: tuple[str, ...]) -> bool:
    """Whether a text that ends an answer stands in it."""
    return any(end in text for end in until)


def may_stop_after(model: "LanguageModel", until: tuple[str, ...]) -> Callable[[int], bool]:
    """A function of a token: whether a text that it ends may have got one of the ends.

    Such a token holds the last character of an end, or a part of a character. To decode whole texts
    after each token costs more than the token does on a GPU.
    """
    if "" in until:
        return lambda token: True
    last_characters = {end[-1] for end in until}
    any_token = any(character.isspace() and character != "\n" for character in last_characters)

    @lru_cache(None)
    def may_stop(token: int) -> bool:
        piece = model.decode([token])
        return HALF_CHARACTER in piece or not last_characters.isdisjoint(piece)

    # Some tokenizers drop a blank when a token is decoded alone.
    return (lambda token: bool(until)) if any_token else may_stop
