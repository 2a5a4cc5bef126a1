"""Prompts and answers of an encoder-decoder as tokens: two texts of their own.

The encoder reads the prompt with all tokens that the tokenizer adds, such as the `</s>` of T5. The
decoder writes the answer, tokenized alone as the labels of a training are.
"""

from collections.abc import Sequence

from evox_evogm.problems.inference.prompts import Prompts, Request, Tokens


class EncoderDecoderPrompts(Prompts):
    """What a tokenizer makes of prompts and answers for an encoder-decoder."""

    def tokens(self, prompt: str, *, chat: bool = False, keep: bool = True) -> Tokens:
        """Tokens of a prompt as the encoder reads it.

        :param keep: whether the prompt will be asked again.
        :raises ValueError: if it is to be a chat, or has no token.
        """
        if chat:
            raise ValueError(
                "chat: expected plain prompts for an encoder-decoder, which has no chats, "
                "found chat: true; leave it out"
            )
        key = (prompt, False)
        tokens = self._prompts.get(key)
        if tokens is None:
            tokens = self._call(prompt, special=True)
            if not tokens:
                raise ValueError(f"expected prompts of at least one token, found {prompt!r}")
            if keep:
                self._prompts[key] = tokens
        return tokens

    def reply(self, prompt: str, answer: str, *, chat: bool = False) -> Tokens:
        """Tokens of an answer as the decoder writes it, without the end of the text.

        :raises ValueError: if the answer has no token.
        """
        key = ("", answer, False)
        if key not in self._replies:
            tokens = self._encode(answer, special=True)
            if not tokens:
                raise ValueError(f"expected answers of at least one token, found {answer!r}")
            self._replies[key] = tokens
        return self._replies[key]

    def joins(self, prompt: str, *, chat: bool = False) -> bool:
        """No answer joins its prompt."""
        return False

    def _make_requests(self, prompt: str, answers: Sequence[str], chat: bool) -> list[Request]:
        own = self.tokens(prompt, chat=chat)
        return [(own, self.reply(prompt, answer)) for answer in answers]
