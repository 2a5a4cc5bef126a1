"""Two kinds of bases: causal language models, and encoder-decoders such as T5.

An encoder reads the prompt, and a decoder writes the answer. What scores merges of either kind has
the same methods, so that what is said here is all that others need to know.
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evox_evogm.problems.inference.language_model import LanguageModel

# Activations of these overflow in float16, where transformers cuts them off.
BEYOND_FLOAT16 = ("t5", "mt5", "umt5", "longt5")
# With these settings transformers' generate writes something else than the likeliest tokens.
FORCED_TOKENS = ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids")


def is_encoder_decoder(model: torch.nn.Module) -> bool:
    """Whether a loaded model has an encoder for prompts and a decoder for answers."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def auto_class(config) -> Any:
    """The class of transformers that loads a base of this configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def task_type_of(model: torch.nn.Module) -> str:
    """What peft calls the kind of a base in the configuration of an adapter."""
    return "SEQ_2_SEQ_LM" if is_encoder_decoder(model) else "CAUSAL_LM"


def make_language_model(model: "PreTrainedModel", tokenizer, **options) -> "LanguageModel":
    """A `LanguageModel`, or an `EncoderDecoderModel`, as the base is.

    :param options: of `LanguageModel`.
    """
    from evox_evogm.problems.inference.encoder_decoder import EncoderDecoderModel
    from evox_evogm.problems.inference.language_model import LanguageModel

    if is_encoder_decoder(model):
        return EncoderDecoderModel(model, tokenizer, **options)
    return LanguageModel(model, tokenizer, **options)


def check_dtype(config, dtype: torch.dtype, base) -> None:
    """Refuse float16 for bases whose activations overflow in it.

    :param config: of the base.
    :param base: named in the error.
    :raises ValueError: saying what to take.
    """
    if dtype == torch.float16 and getattr(config, "model_type", "") in BEYOND_FLOAT16:
        raise ValueError(
            f"dtype: expected bfloat16 or float32 for {str(base)!r}, found float16, in which "
            f"activations of {config.model_type!r} overflow"
        )


def check_causal(model: torch.nn.Module, what: str, instead: str) -> None:
    """Refuse an encoder-decoder where only causal bases are supported.

    :param what: needs one.
    :param instead: what to do.
    :raises ValueError: in one sentence.
    """
    if is_encoder_decoder(model):
        kind: Any = model.config
        raise ValueError(
            f"{what}: expected a causal base, found the encoder-decoder {kind.model_type!r}; "
            f"{instead}"
        )


def plain_logits(model: "PreTrainedModel", tokens: torch.Tensor) -> torch.Tensor:
    """The logits `(C, V)` of a plain pass over one row of tokens.

    An encoder-decoder reads them and, behind its start token, writes them again.

    :param tokens: a `(1, C)` tensor.
    """
    tokens = tokens.to(model.device)
    if not is_encoder_decoder(model):
        return model(input_ids=tokens).logits[0]
    first = torch.full_like(tokens[:, :1], start_token_of(model))
    inputs = torch.cat([first, tokens[:, :-1]], 1)
    return model(input_ids=tokens, decoder_input_ids=inputs).logits[0]


def start_token_of(model: "PreTrainedModel") -> int:
    """The token that the decoder of an encoder-decoder begins with, as in transformers' generate.

    :raises ValueError: if its settings name none, or force or forbid tokens of answers.
    """
    settings = [getattr(model, "generation_config", None), model.config]
    for name in FORCED_TOKENS:
        if any(getattr(one, name, None) is not None for one in settings):
            raise ValueError(
                "base: expected an encoder-decoder that chooses all tokens of its answers, found "
                f"{name} in its settings; T5, FLAN-T5 and mT5 can be used"
            )
    for name in ("decoder_start_token_id", "bos_token_id"):
        for one in settings:
            token = getattr(one, name, None)
            if isinstance(token, int):
                return token
    raise ValueError(
        "base: expected decoder_start_token_id in the settings of an encoder-decoder, found none"
    )
