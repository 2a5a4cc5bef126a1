"""Prompts and their continuations as tokens, cut out of one text.

Many tokenizers write the start of a text otherwise than its middle: they put a blank before it, or
mark words that continue. So a continuation is tokenized together with its prompt, and cut behind
it, as `_encode_pair` of the LM Evaluation Harness does (lm_eval/api/model.py, MIT).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from evox_evogm.problems.inference.chat_template import ChatTemplate
from evox_evogm.problems.inference.panics import panics_as_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_KEPT = 2**16
Tokens = tuple[int, ...]
Request = tuple[Tokens, Tokens]  # the tokens of a prompt and of its continuation


class Prompts:
    """What a tokenizer makes of prompts, chats and answers. All tokens are kept.

    :param tokenizer: with an end-of-text token.
    :param chat_arguments: for the chat template, such as `{"enable_thinking": False}`.
    :raises ValueError: if the tokenizer has no end-of-text token, or the chat template reads no
        such argument.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", *, chat_arguments: Mapping | None = None
    ):
        if tokenizer.eos_token_id is None:
            raise ValueError("base: expected a tokenizer with an end-of-text token, found none")
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate(tokenizer, chat_arguments)
        self._prefix, self._suffix = self._added_tokens()
        self._prompts: dict[tuple[str, bool], Tokens] = {}
        self._requests: dict[tuple[str, tuple[str, ...], bool], list[Request]] = {}
        self._replies: dict[tuple[str, str, bool], Tokens] = {}
        self._joined: set[tuple[str, bool]] = set()
        self.logged: set[str] = set()  # warnings about tokens, each of which is logged once
        # A search meets the same short texts again and again.
        self.decode_and_keep = lru_cache(TEXTS_KEPT)(self.decode)

    def text(self, prompt: str, *, chat: bool) -> str:
        """The text that the tokenizer gets: the prompt, or the chat in which it is the question."""
        return self.chat_template.text(prompt) if chat else prompt

    def tokens(self, prompt: str, *, chat: bool = False, keep: bool = True) -> Tokens:
        """Tokens of a prompt, with those that the tokenizer puts before a text, not after it.

        :param chat: put the prompt through the chat template, which writes such tokens itself.
        :param keep: whether the prompt will be asked again.
        :raises ValueError: if the prompt has no token, or the chat template cannot be used.
        """
        key = (prompt, chat)
        tokens = self._prompts.get(key)
        if tokens is None:
            tokens = self._encode(self.text(prompt, chat=chat), special=not chat)
            if not tokens:
                raise ValueError(f"expected prompts of at least one token, found {prompt!r}")
            if keep:
                self._prompts[key] = tokens
        return tokens

    def request(self, prompt: str, answer: str, *, chat: bool = False) -> Request:
        """Tokens of a prompt and of one answer, see `requests`."""
        return self.requests(prompt, [answer], chat=chat)[0]

    def requests(self, prompt: str, answers: Sequence[str], *, chat: bool = False) -> list[Request]:
        """Tokens of a prompt and of each of its answers, whose likelihoods can be compared.

        - An answer follows a blank, or in a chat the text that the template closes with.
        - Blanks at the end of a prompt belong to the answer. In a chat they do so if an answer
          joins them in a token.
        - Where a token still holds the end of the prompt and the beginning of the answer, the
          answer is what follows as many tokens as the prompt has; see `joins`.

        :return: a pair of prompt and answer for each answer. They have the same prompt, unless the
            whole of an answer joins it.
        :raises ValueError: if the prompt or an answer has no token.
        """
        key = (prompt, tuple(answers), chat)
        if key not in self._requests:
            self._requests[key] = self._make_requests(prompt, answers, chat)
        return self._requests[key]

    def _make_requests(self, prompt: str, answers: Sequence[str], chat: bool) -> list[Request]:
        text = self.text(prompt, chat=chat)
        own = self.tokens(prompt, chat=chat)
        wholes = []
        for answer in answers:
            wholes.append(self._encode(text + following(answer, chat), special=not chat))
        is_beginning = all(begins(whole, own) for whole in wholes)
        without_blanks = text.rstrip()
        if without_blanks and not (chat and is_beginning):
            own = self._encode(without_blanks, special=not chat) or own
        requests = []
        for answer, whole in zip(answers, wholes, strict=True):
            requests.append(cut(whole, own, answer))
            if not begins(whole, own):
                self._joined.add((prompt, chat))
        return requests

    def joins(self, prompt: str, *, chat: bool = False) -> bool:
        """Whether an answer that was tokenized joins the end of the prompt in one token."""
        return (prompt, chat) in self._joined

    def reply(self, prompt: str, answer: str, *, chat: bool = False) -> Tokens:
        """Tokens of an answer as they would follow all tokens of the prompt, with its blanks.

        :raises ValueError: if the answer has no token.
        """
        key = (prompt, answer, chat)
        if key not in self._replies:
            own = self.tokens(prompt, chat=chat)
            continuation = following(answer, chat)
            text = self.text(prompt, chat=chat) + continuation
            whole = self._encode(text, special=not chat)
            reply = whole[len(own) :]
            if not begins(whole, own):
                reply = self._encode(continuation, special=False)
            if not reply:
                raise ValueError(f"expected answers of at least one token, found {answer!r}")
            self._replies[key] = reply
        return self._replies[key]

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of some tokens.

        :param special: whether with special tokens.
        """
        with panics_as_errors():
            text = self.tokenizer.decode(list(tokens), skip_special_tokens=not special)
        assert isinstance(text, str), "one row of tokens is one text"
        return text

    def padding_token(self, vocabulary: int) -> int:
        """A token to fill rows up with. It is never attended to, so any will do that has a row.

        :param vocabulary: the number of rows of the embedding.
        """
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None and 0 <= token < vocabulary:
                return token
        return 0

    def _encode(self, text: str, *, special: bool) -> Tokens:
        """Tokens of a text.

        :param special: whether with tokens that the tokenizer puts before a text. Those that it
            puts behind one, such as an end of text, are left out.
        """
        tokens = self._call(text, special=special)
        if special and self._suffix and tokens[-len(self._suffix) :] == self._suffix:
            written = self._call(text, special=False)
            if len(tokens) > len(self._prefix) + len(written):
                return tokens[: -len(self._suffix)]
        return tokens

    def _call(self, text: str, *, special: bool) -> Tokens:
        with panics_as_errors():
            return tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def _added_tokens(self) -> tuple[Tokens, Tokens]:
        """The tokens that the tokenizer puts before and behind every text."""
        added = self._call("a", special=True)
        written = self._call("a", special=False)
        for start in range(len(added) - len(written) + 1):
            end = start + len(written)
            if added[start:end] == written:
                return added[:start], added[end:]
        return (), ()


def following(answer: str, chat: bool) -> str:
    """The text of an answer behind its prompt: after a blank, or as the reply in a chat."""
    return answer if chat else f" {answer}"


def begins(whole: Tokens, own: Tokens) -> bool:
    """Whether a text begins with all tokens of its prompt."""
    return whole[: len(own)] == own


def cut(whole: Tokens, own: Tokens, answer: str) -> Request:
    """Split the tokens of a text behind its prompt.

    :param own: the tokens of the prompt alone.
    :param answer: named in the error.
    :raises ValueError: if nothing is left for the answer.
    """
    rest = whole[len(own) :]
    if rest:
        return own, rest
    # All of the answer joins the prompt's last tokens. They count as the answer then.
    start = 0
    for one, other in zip(whole, own, strict=False):
        if one != other:
            break
        start += 1
    if start == 0 or not whole[start:]:
        raise ValueError(f"expected answers of at least one token, found {answer!r}")
    return own[:start], whole[start:]
