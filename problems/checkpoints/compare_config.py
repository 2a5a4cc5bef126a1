"""Compare the configuration of a whole model with the base's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evox_evogm.problems.checkpoints.checkpoint_files import MODEL_CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What shapes cannot tell, or tell less plainly.
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
)
# Weights fit all the same. A merge computes with what the base has.
OTHERS = (
    "hidden_act",
    "rope_parameters",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "layer_norm_eps",
    "sliding_window",
)


def compare_config(config: Mapping, model: "PreTrainedModel", folder, where: str) -> list[str]:
    """Refuse another architecture, vocabulary or size.

    :param config: what `config.json` of the expert holds.
    :param model: the base.
    :param folder: of the expert.
    :param where: the expert as error messages name it.
    :return: what else differs, in words.
    :raises ValueError: in one sentence.
    """
    kind = config.get("model_type")
    if kind != model.config.model_type:
        raise ValueError(
            f"{where}: expected a model of the base's architecture {model.config.model_type!r}, "
            f"found {kind!r}; only weights of one architecture can be merged"
        )
    own = _text_part(_parsed(model, folder, where))
    base = _text_part(model.config)
    for name in SIZES:
        expected, found = getattr(base, name, None), getattr(own, name, None)
        if expected != found:
            what = "vocabulary" if name == "vocab_size" else "size"
            raise ValueError(
                f"{where}: expected the {what} of the base, {name} {expected}, found {found}; "
                "only models of one base can be merged"
            )
    different = []
    for name in OTHERS:
        expected, found = getattr(base, name, None), getattr(own, name, None)
        if expected != found:
            different.append(f"{name} {found} in place of {expected}")
    return different


def is_tied(config: Mapping) -> bool:
    """Whether an output layer shares its weight with the embedding, as a `config.json` says."""
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    return bool(config.get("tie_word_embeddings", inner))


def _parsed(model: "PreTrainedModel", folder, where: str) -> Any:
    """The configuration of the expert as the base's class reads it, with its defaults."""
    try:
        return type(model.config).from_pretrained(folder)
    except Exception as error:  # each class checks in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{where}: expected a {MODEL_CONFIG} that transformers reads, found {reason}"
        ) from error


def _text_part(config: Any) -> Any:
    return config.get_text_config(decoder=True)
