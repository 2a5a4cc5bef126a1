"""Texts that end a generated answer, and the tokens behind which they have to be looked for."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evox_evogm.problems.inference.language_model import LanguageModel

HALF_CHARACTER = "\ufffd"  # what a tokenizer writes for bytes that are no whole character


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first of the texts that end it."""
    for end in until:
        text = text.split(end)[0]
    return text


def stops(text: str, until: Collection[str]) -> bool:
    """Whether a text that ends an answer stands in it."""
    return any(end in text for end in until)


def may_stop_after(model: "LanguageModel", until: Collection[str]) -> Callable[[int], bool]:
    """A function of a token: whether a text that it ends may have got one of the ends.

    Such a token holds the last character of an end, or a part of a character. To decode whole texts
    after each token costs more than the token does on a GPU.
    """
    if not until:
        return lambda token: False
    last_characters = {end[-1:] for end in until}
    # An empty text ends all others. Some tokenizers drop a blank when a token is decoded alone.
    if any(last == "" or (last.isspace() and last != "\n") for last in last_characters):
        return lambda token: True

    def may_stop(token: int) -> bool:
        piece = model.prompts.decode_and_keep((token,))
        is_part = not piece or HALF_CHARACTER in piece  # of a character, or a special token
        return is_part or not last_characters.isdisjoint(piece)

    return may_stop
