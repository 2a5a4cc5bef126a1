"""Which models read texts: those that have a tokenizer."""

from typing import TYPE_CHECKING, TypeGuard

from evox_evogm.problems.inference.scored_model import ScoredModel

if TYPE_CHECKING:
    from evox_evogm.problems.inference.language_model import LanguageModel


def reads_texts(model: ScoredModel) -> "TypeGuard[LanguageModel]":
    """Whether a model reads texts, as a `LanguageModel` and an `EncoderDecoderModel` do."""
    return hasattr(model, "tokenizer")


def reading_texts(model: ScoredModel) -> "LanguageModel":
    """The model, as one that reads texts.

    :raises ValueError: if it reads something else.
    """
    if not reads_texts(model):
        raise ValueError(
            f"base: expected a model that reads texts, found {type(model.model).__name__}"
        )
    return model
