"""Texts of the harness as tokens, by the code with which its own HFLM makes them."""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from evox_evogm.problems.inference.prompts import Request, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def make_encoder(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", chat_arguments: Mapping
):
    """An object that tokenises as HFLM would with this model and tokenizer, and answers nothing.

    :param chat_arguments: for the chat template.
    """
    return _encoder_class()(model, tokenizer, chat_arguments)


@cache
def _encoder_class() -> type:
    from lm_eval.models.huggingface import HFLM

    class Encoder(HFLM):
        """HFLM without its set-up, which changes the model and the tokenizer."""

        def __init__(self, model, tokenizer, chat_arguments):
            super(HFLM, self).__init__()
            self._model = model
            self._config = model.config
            self._max_length = None
            self.tokenizer = tokenizer
            self.backend = "causal"
            self.add_bos_token = None
            self.custom_prefix_token_id = None
            self.enable_thinking = None
            self.chat_template_args = dict(chat_arguments)
            self.texts_cut = 0  # those that were too long

        def _loglikelihood_tokens(self, requests, **_) -> Any:
            """The tokens of contexts and continuations, in place of answers."""
            return [(tuple(context), tuple(rest)) for _, context, rest in requests]

    return Encoder


def likelihood_request(encoder, instance) -> Request:
    """The tokens of a context and its continuation, from a request of log-likelihood.

    Of a text that is too long the first tokens are left out, as by HFLM.

    :raises ValueError: if the continuation has no token, or more than the model takes.
    """
    ((context, continuation),) = encoder.loglikelihood([instance], disable_tqdm=True)
    limit = encoder.max_length
    if not 0 < len(continuation) <= limit:
        raise ValueError(
            f"expected a continuation of 1 to {limit} tokens, found {len(continuation)}: "
            f"{instance.args[1]!r}"
        )
    kept = max(1, limit + 1 - len(continuation))
    encoder.texts_cut += len(context) > kept
    return context[-kept:], continuation


def rolling_requests(encoder, instance) -> list[Request]:
    """The windows of a whole text, each with what goes before it, as HFLM makes them.

    :raises ValueError: if the text has no token.
    """
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    (text,) = instance.args
    windows = get_rolling_token_windows(
        token_list=encoder.tok_encode(text),
        prefix_token=encoder.prefix_token_id,
        max_seq_len=encoder.max_length,
        context_len=1,
    )
    requests = []
    for window in windows:
        context, continuation = make_disjoint_window(window)
        requests.append((tuple(context), tuple(continuation)))
    if not requests:
        raise ValueError("expected a text of at least one token, found an empty one")
    return requests


def generation_prompt(encoder, text: str, max_new_tokens: int) -> Tokens:
    """The tokens of a context that an answer is generated after.

    Of a text that is too long the first tokens are left out, as by HFLM.

    :raises ValueError: if the model has no room for the answer, or the text has no token.
    """
    room = encoder.max_length - max_new_tokens
    if room < 1:
        raise ValueError(
            f"expected max_gen_toks below the model's {encoder.max_length} tokens, "
            f"found {max_new_tokens}"
        )
    tokenizer = encoder.tokenizer
    special = {}
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        special["add_special_tokens"] = False
    tokens = tuple(tokenizer(text, **special)["input_ids"])
    if not tokens:
        raise ValueError("expected a prompt of at least one token, found an empty one")
    encoder.texts_cut += len(tokens) > room
    return tokens[-room:]


def gold_request(encoder, context: str, target: str) -> Request:
    """The tokens of a context and of the right text behind it.

    :param target: with its delimiter.
    """
    if not context:
        return (encoder.prefix_token_id,), tuple(encoder.tok_encode(target))
    start, rest = encoder._encode_pair(context, target)
    return tuple(start), tuple(rest)
