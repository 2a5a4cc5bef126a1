"""What a base can take: how many different tokens, and how many of them in a row."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Modules and buffers with a row per position, such as `wpe` of GPT-2 and `embed_positions` of OPT.
POSITION_TABLE = re.compile(r"(^|[._])(wpe|pos|position|positions)([._]|$)")
MOST_EXTRA_ROWS = 8  # of a table, beyond the positions that the settings name


@dataclass(frozen=True)
class Limits:
    """Limits of a language model.

    :param vocabulary: the number of rows of its embedding.
    :param positions: the most tokens of a text that it has positions for; None without a limit.
    :param trained: the most tokens of a text in its training, as its settings say; None if they do
        not.
    """

    vocabulary: int
    positions: int | None
    trained: int | None


def limits_of(model: "PreTrainedModel") -> Limits:
    """The limits of a model, from its layers and settings."""
    config = model.config.get_text_config()
    trained = _whole_number(config, "max_position_embeddings")
    embedding: torch.Tensor = model.get_input_embeddings().get_parameter("weight")
    vocabulary = len(embedding)
    tables = _position_tables(model, trained)
    if trained is None:
        # MPT makes its ALiBi biases for so many tokens.
        fixed = _whole_number(config, "max_seq_len")
        return Limits(vocabulary, min([*tables, fixed] if fixed else tables, default=None), fixed)
    positions = min([*tables, trained]) if tables else None
    return Limits(vocabulary, positions, trained)


def _whole_number(config, name: str) -> int | None:
    """A setting that is a number above 0."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else None


def _position_tables(model: torch.nn.Module, trained: int | None) -> list[int]:
    """The number of positions in each table of the model that has a row for every position.

    :param trained: the positions that the settings name; a table has about as many rows.
    """
    sizes = []
    for name, module in model.named_modules():
        if not POSITION_TABLE.search(name) or hasattr(module, "make_weights"):
            continue  # XGLM makes more rows when it needs them
        if isinstance(module, torch.nn.Embedding):
            # Roberta and others count positions from behind the padding token.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            sizes.append((module.num_embeddings, module.num_embeddings - first))
    for name, buffer in model.named_buffers():
        if POSITION_TABLE.search(name) and buffer.dim() == 2 and not name.endswith("weights"):
            sizes.append((buffer.shape[0], buffer.shape[0]))
    positions = []
    for rows, count in sizes:
        if trained is None or trained <= rows <= trained + MOST_EXTRA_ROWS:
            positions.append(count)
    return positions
