"""The vocabulary of an adapter beside that of a base.

Bases without a padding token often get one for training. The vocabulary of the adapter then has one
token more, and perhaps one row of the embeddings. Padding is never attended to, so that the adapter
fits the base without this token. Any other difference means that tokens have other meanings.
"""

import json
from pathlib import Path
from typing import NamedTuple

from evox_evogm.problems.inference.panics import panics_as_errors

FILE = "tokenizer.json"


class VocabularyDifference(NamedTuple):
    """How the tokenizer in an adapter's folder differs from the base's.

    :param tokens: how many tokens differ, beside one that pads.
    :param pads: whether the adapter's has a token that the base's lacks, which pads.
    """

    tokens: int = 0
    pads: bool = False


def compare_vocabulary(folder: Path, tokenizer, where: str) -> VocabularyDifference:
    """Compare a tokenizer in an adapter's folder, if there is one, with the base's.

    :param tokenizer: the base's.
    :param where: the adapter as error messages name it.
    :raises ValueError: if the file cannot be read.
    """
    from tokenizers import Tokenizer

    path = folder / FILE
    if not path.is_file():
        return VocabularyDifference()
    try:
        with panics_as_errors():
            own = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{where}: expected a tokenizer in {FILE}, found {error}") from error
    vocabulary = tokenizer.get_vocab()
    differing = set(own.items()) ^ set(vocabulary.items())
    more = set(own) - set(vocabulary)
    pads = len(more) == 1 and more == {_pad_token(folder)}
    if pads:
        (pad_token,) = more
        differing.discard((pad_token, own[pad_token]))
    return VocabularyDifference(len(differing), pads)


def rows_fit(rows: int, expected: int, difference: VocabularyDifference) -> bool:
    """Whether an adapter's number of rows of an embedding fits the base's.

    :param rows: of the adapter, or of its copy of a layer.
    :param expected: of the base.
    """
    # Embeddings are often resized to a multiple of 8 or 64.
    return rows in (expected, expected + 1) or (rows > expected and difference.pads)


def _pad_token(folder: Path) -> str | None:
    """The padding token that an adapter's folder names, or None."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            pad_token = json.loads((folder / name).read_text(encoding="utf-8"))["pad_token"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(pad_token, dict):
            pad_token = pad_token.get("content")
        if isinstance(pad_token, str):
            return pad_token
    return None
