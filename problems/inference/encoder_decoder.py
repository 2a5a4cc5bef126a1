"""An encoder-decoder such as T5 as scored tasks use it: likelihoods of answers, and greedy texts.

It answers what a `LanguageModel` answers. Requests with candidate and prompt in common are read
once: the encoder's output is shared by all their answers. Batches hold prompts of similar length,
and prompts of different candidates.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from evox_evogm.problems.inference.batch_sizes import BATCH_TOKENS, BatchSizes
from evox_evogm.problems.inference.batching import Batching
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.decoding import NOT_A_NUMBER, most_likely_tokens
from evox_evogm.problems.inference.derivatives import batching_to_differentiate
from evox_evogm.problems.inference.encoder_decoder_forward import (
    EncoderDecoderForward,
    Read,
    pad_right,
)
from evox_evogm.problems.inference.encoder_decoder_prompts import EncoderDecoderPrompts
from evox_evogm.problems.inference.forward import Select
from evox_evogm.problems.inference.free_memory import MAX_MEMORY
from evox_evogm.problems.inference.kinds_of_base import check_dtype, start_token_of
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.likelihoods import ScoredPass
from evox_evogm.problems.inference.prompts import Request, Tokens
from evox_evogm.problems.to_device import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Answer(NamedTuple):
    """What the decoder reads of one request, at all of whose positions logits are needed.

    :param candidate: that the request is for.
    :param prompt: what the encoder reads.
    :param tokens: what the decoder reads, beginning with its start token.
    """

    candidate: int
    prompt: Tokens
    tokens: Tokens


class EncoderDecoderModel(LanguageModel):
    """An encoder-decoder with its tokenizer, see `LanguageModel`.

    :param model: of `AutoModelForSeq2SeqLM`, in evaluation mode.
    :raises ValueError: if its decoder has no start token, it is in a dtype in which it overflows,
        or its tokenizer has no end-of-text token.
    """

    forward: EncoderDecoderForward

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_tokens: int | BatchSizes = BATCH_TOKENS,
        max_memory: int = MAX_MEMORY,
        share_prefixes: bool = True,
        capabilities: Capabilities | None = None,
        chat_template: Mapping | None = None,
    ):
        check_dtype(model.config, model.dtype, type(model).__name__)
        super().__init__(
            model,
            tokenizer,
            batch_tokens=batch_tokens,
            max_memory=max_memory,
            share_prefixes=share_prefixes,
            capabilities=capabilities,
            chat_template=chat_template,
        )
        self.start_token = start_token_of(model)
        self.prompts = EncoderDecoderPrompts(tokenizer, chat_arguments=chat_template)
        self.forward = EncoderDecoderForward(model)

    @contextmanager
    def candidates(
        self,
        select: Select,
        shared_layers: int = 0,
        coefficients_of_rows: Callable[[], torch.Tensor] | None = None,
    ) -> Iterator[None]:
        """Inside the block the rows of a batch may belong to different candidates.

        :param shared_layers: not used: the layers of encoder and decoder run for every candidate.
        """
        with super().candidates(select, 0, coefficients_of_rows):
            yield

    @property
    def batching(self) -> Batching:
        """How rows become batches. Those that decode together are read by one pass."""
        return replace(super().batching, decode_rows=None)

    def _score(
        self,
        requests: Sequence[Request],
        candidates: Sequence[int] | None,
        *,
        skip_last: bool,
        differentiate: bool,
    ) -> Iterator[ScoredPass]:
        """The logits from which the tokens of N answers are predicted, see `LanguageModel`.

        :param skip_last: not used: the decoder never reads the last token of an answer.
        """
        candidates = candidates or [0] * len(requests)
        answers = []
        for (prompt, answer), candidate in zip(requests, candidates, strict=True):
            answers.append(Answer(candidate, prompt, (self.start_token, *answer[:-1])))
        return self._logits_to_differentiate(answers) if differentiate else self._logits(answers)

    def _continue(
        self,
        numbers: Sequence[int],
        prompts: Sequence[Sequence[int]],
        candidates: Sequence[int],
        replies: list[list[int]],
        max_new_tokens: int,
        is_complete: Callable[[int], bool],
    ) -> None:
        """Append greedy tokens to some replies, those of one length together."""
        numbers_by_length: dict[int, list[int]] = {}
        for number in numbers:
            numbers_by_length.setdefault(len(replies[number]), []).append(number)
        for alike in numbers_by_length.values():
            some_prompts = [tuple(prompts[number]) for number in alike]
            for batch in self._batches_of_prompts(some_prompts, cached=max_new_tokens):
                rows = [alike[place] for place in batch]
                self._decode(rows, prompts, candidates, replies, is_complete)

    def _decode(
        self,
        rows: list[int],
        prompts: Sequence[Sequence[int]],
        candidates: Sequence[int],
        replies: list[list[int]],
        is_complete: Callable[[int], bool],
    ) -> None:
        """Append greedy tokens to replies of one length, without the end of text."""
        owners = [candidates[row] for row in rows]
        read = self.read([prompts[row] for row in rows], owners)
        begun = [[self.start_token, *replies[row]] for row in rows]
        tokens = to_device(torch.tensor(begun), self.device)  # (N, W), not read yet
        cache = None
        while True:
            logits, cache = self.forward.step(owners, read, tokens, cache)
            chosen = most_likely_tokens(logits)  # (N,)
            running = []
            for place, token in enumerate(chosen.tolist()):
                if token == NOT_A_NUMBER:
                    raise ArithmeticError("expected logits, found NaN")
                if token in self.end_tokens:
                    continue
                replies[rows[place]].append(token)
                if not is_complete(rows[place]):
                    running.append(place)
            if not running:
                return
            if len(running) < len(rows):
                kept = torch.tensor(running, device=self.device)
                cache.batch_select_indices(kept)
                read, chosen = read.rows(kept), chosen[kept]
                rows = [rows[place] for place in running]
                owners = [owners[place] for place in running]
            tokens = chosen[:, None]

    def read(self, prompts: Sequence[Sequence[int]], candidates: Sequence[int]) -> Read:
        """What the encoder makes of prompts, each by its candidate."""
        tokens, mask = pad_right(prompts, self.pad_id, self.device)
        return self.forward.encode(candidates, tokens, mask)

    def _batches_of_prompts(
        self, prompts: Sequence[Tokens], cached: int | None = None
    ) -> Iterator[list[int]]:
        """The places of prompts that one pass reads.

        :param cached: how many tokens of an answer the cache holds in the end.
        """
        return self.batching.split(prompts, [1] * len(prompts), cached)

    def _logits(self, answers: Sequence[Answer]) -> Iterator[ScoredPass]:
        """Logits at all positions of answers. What several have in common is read once."""
        rows_of: dict[tuple[int, Tokens], list[int]] = {}
        for row, answer in enumerate(answers):
            rows_of.setdefault((answer.candidate, answer.prompt), []).append(row)
        sources = list(rows_of)  # E pairs of candidate and prompt
        prompts = [prompt for _, prompt in sources]
        for batch in self._batches_of_prompts(prompts):
            owners = [sources[place][0] for place in batch]
            read = self.read([prompts[place] for place in batch], owners)
            rows: list[int] = []
            places: list[int] = []  # for each row that of its prompt in the batch
            for place, source in enumerate(batch):
                own = rows_of[sources[source]]
                rows += own
                places += [place] * len(own)
            yield from self._decode_answers(answers, rows, places, read)

    def _decode_answers(
        self, answers: Sequence[Answer], rows: list[int], places: list[int], read: Read
    ) -> Iterator[ScoredPass]:
        """Logits at all positions of answers to prompts that were read.

        :param rows: the numbers of the answers.
        :param places: for each of them that of its prompt in `read`.
        """
        tokens = [answers[row].tokens for row in rows]
        lengths = [len(one) for one in tokens]
        width = read.mask.shape[1]  # which the decoder attends to, in every row
        for part in self.batching.split(tokens, lengths, added=width):
            own = [tokens[index] for index in part]
            inputs, _ = pad_right(own, self.pad_id, self.device)
            of_rows = to_device(torch.tensor([places[index] for index in part]), self.device)
            numbers = [rows[index] for index in part]
            owners = [answers[row].candidate for row in numbers]
            scored = [lengths[index] for index in part]
            logits = self.forward.decode(owners, read.rows(of_rows), inputs, scored)
            yield ScoredPass(numbers, scored, logits)

    def _logits_to_differentiate(self, answers: Sequence[Answer]) -> Iterator[ScoredPass]:
        """Logits that a derivative goes back through, to coefficients that no two rows share."""
        batching = batching_to_differentiate(self.batching, self.model)
        whole = [(*answer.prompt, *answer.tokens) for answer in answers]
        lengths = [len(answer.tokens) for answer in answers]
        for rows in batching.split(whole, lengths):
            owners = [answers[row].candidate for row in rows]
            prompts, mask = pad_right(
                [answers[row].prompt for row in rows], self.pad_id, self.device
            )
            inputs, _ = pad_right([answers[row].tokens for row in rows], self.pad_id, self.device)
            scored = [lengths[row] for row in rows]
            with torch.enable_grad():
                logits = self.forward.read_and_decode(owners, prompts, mask, inputs, scored)
            yield ScoredPass(rows, scored, logits)
