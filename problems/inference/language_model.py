"""A language model as scored tasks use it: likelihoods of given continuations, and greedy texts.

Requests become rows of tokens, and rows become batches of similar length (`batching.py`). First
tokens that several rows of a candidate share run once (`shared_prefixes.py`), and so do layers that
all candidates have in common (`shared_layers.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.inference.batch_sizes import BATCH_TOKENS, BatchSizes, sizes_of
from evox_evogm.problems.inference.batching import Batching, estimate_memory
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.decoding import decode_greedily
from evox_evogm.problems.inference.derivatives import (
    ValueOf,
    at_least_float32,
    batching_to_differentiate,
    checkpointed,
    kept_bytes,
    leads,
)
from evox_evogm.problems.inference.forward import Forward
from evox_evogm.problems.inference.free_memory import MAX_MEMORY
from evox_evogm.problems.inference.likelihoods import (
    Likelihoods,
    MeasuredTokens,
    ScoredPass,
    log_probabilities_of,
    measure_tokens,
    read_likelihoods,
)
from evox_evogm.problems.inference.limits import limits_of
from evox_evogm.problems.inference.prepared_batches import PreparedBatch, prepare_batches
from evox_evogm.problems.inference.prompts import Prompts, Request, Tokens
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.shared_prefixes import Row
from evox_evogm.problems.to_device import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANY_TOKEN = (0,)  # a continuation of one token, which no pass reads
# On an accelerator, rows that ended leave a batch once so many have; on the CPU at once.
LEAST_ENDED = 0.25


class LanguageModel(ScoredModel):
    """A causal LM with its tokenizer.

    Inside `with language_model.candidates(population.select)` every request may name the candidate
    that it is for. Requests for different candidates share batches.

    :param model: a transformers causal LM, in evaluation mode.
    :param tokenizer: its tokenizer.
    :param batch_tokens: the most tokens, padding included, in one forward pass, or `BatchSizes`.
    :param max_memory: bytes that a forward pass may take beyond the model, as estimated. A single
        row may take more.
    :param share_prefixes: whether first tokens that several requests share may run once.
    :param capabilities: what the base gives rightly, as `probe.py` finds it out; everything by
        default.
    :param chat_template: arguments for the tokenizer's chat template.
    :raises ValueError: if the tokenizer has no end-of-text token, or the chat template reads no
        such argument.
    """

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
        self.prompts = Prompts(tokenizer, chat_arguments=chat_template)
        self.limits = limits_of(model)
        super().__init__(
            model,
            Forward(model),
            batch_sizes=sizes_of(batch_tokens),
            max_memory=max_memory,
            capabilities=capabilities or Capabilities(share_prefixes=share_prefixes),
        )
        self.tokenizer = tokenizer
        self.memory = estimate_memory(model)
        self.pad_id = self.prompts.padding_token(self.limits.vocabulary)

    @property
    def batching(self) -> Batching:
        """How rows become batches."""
        return Batching(
            self.batch_sizes.tokens,
            self.max_memory,
            self.memory,
            self.pad_id,
            decode_rows=self.batch_sizes.rows,
            pass_tokens=self.batch_sizes.pass_tokens,
            step_tokens=self.batch_sizes.step_tokens,
        )

    @property
    def end_token(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def end_tokens(self) -> set[int]:
        """All tokens that end a text: the tokenizer's, and those of the generation settings."""
        tokens = {self.end_token}
        settings = getattr(self.model, "generation_config", None)
        more = getattr(settings, "eos_token_id", None)
        if isinstance(more, list):
            tokens.update(more)
        elif more is not None:
            tokens.add(more)
        return tokens

    @property
    def known_tokens(self) -> int:
        """How many of the tokenizer's first tokens the base has a row for, at most all.

        A larger one is an error, after which a GPU computes nothing any more.
        """
        return min(self.tokenizer.vocab_size, self.limits.vocabulary)

    def prompt_tokens(self, prompt: str, *, chat: bool = False, keep: bool = True) -> Tokens:
        """Tokens of a prompt, see `Prompts.tokens`."""
        return self.prompts.tokens(prompt, chat=chat, keep=keep)

    def request(self, prompt: str, answer: str, *, chat: bool = False) -> Request:
        """Tokens of a prompt and of an answer behind it, see `Prompts.requests`."""
        return self.prompts.request(prompt, answer, chat=chat)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, without special tokens."""
        return self.prompts.decode(tokens)

    def _prepare(self, rows: Sequence[Row], max_new_tokens: int = 0) -> Iterator[PreparedBatch]:
        return prepare_batches(
            rows,
            self.forward,
            self.batching,
            max_new_tokens=max_new_tokens,
            capabilities=self.capabilities,
        )

    def _prepare_to_differentiate(self, rows: Sequence[Row]) -> Iterator[PreparedBatch]:
        """Batches in which no row depends on the coefficients of another: no prefix is shared."""
        return prepare_batches(
            rows,
            self.forward,
            batching_to_differentiate(self.batching, self.model),
            capabilities=self.capabilities.without("share_prefixes"),
        )

    @contextmanager
    def _recording(self, batch: PreparedBatch) -> Iterator[None]:
        """Inside the block passes are recorded, so that their results can be differentiated."""
        kept = batch.tokens.numel() * kept_bytes(self.model)
        layers: AbstractContextManager[None] = nullcontext()
        if kept > self.max_memory:
            layers = checkpointed(self.model)
        with layers, torch.enable_grad():
            yield

    def _score(
        self,
        requests: Sequence[Request],
        candidates: Sequence[int] | None,
        *,
        skip_last: bool,
        differentiate: bool,
    ) -> Iterator[ScoredPass]:
        """The logits from which the tokens of N continuations are predicted, pass by pass.

        :param requests: pairs of prompt and continuation tokens, both non-empty.
        :param candidates: for each request its candidate; all the first if not given.
        :param skip_last: whether the last token of a continuation, which nothing follows, stays out
            of the passes.
        :param differentiate: whether a derivative goes back through the logits.
        """
        candidates = candidates or [0] * len(requests)
        rows = []
        for (prompt, continuation), candidate in zip(requests, candidates, strict=True):
            tokens = prompt + continuation
            tokens = tokens[:-1] if skip_last else tokens
            scored = len(continuation)
            rows.append(Row(tokens, candidate, shareable=len(prompt) - 1, scored=scored))
        offset = 0 if skip_last else 1  # the logits of a token stand at the position before it
        if not differentiate:
            for batch in self._prepare(rows):
                logits = batch.run(self.forward, target_offset=offset)
                yield ScoredPass(batch.rows, batch.scored, logits)
            return
        for batch in self._prepare_to_differentiate(rows):
            with self._recording(batch):
                logits = batch.run(self.forward, target_offset=offset)
            yield ScoredPass(batch.rows, batch.scored, logits)

    @torch.no_grad()
    def next_token_log_probabilities(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: Sequence[Sequence[int]],
        candidates: Sequence[int] | None = None,
        gold: Sequence[int] | None = None,
        derivatives: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Log-probabilities in nats of single tokens after their prompt.

        One forward pass over a prompt scores all its tokens.

        :param prompts: N prompts.
        :param tokens: for each prompt the tokens to score.
        :param candidates: for each prompt its candidate; all the first if not given.
        :param gold: for each prompt the place of the right one of its tokens.
        :param derivatives: an `(N, n g)` tensor to write to, by the coefficients, of the lead of
            the right token (`derivatives.leads`).
        :return: N tensors on the CPU, one number per token.
        """
        requests = [(tuple(prompt), ANY_TOKEN) for prompt in prompts]
        results = [torch.empty(0)] * len(prompts)
        differentiate = derivatives is not None
        passes = self._score(requests, candidates, skip_last=True, differentiate=differentiate)
        found: list[tuple[list[int], torch.Tensor]] = []
        for rows, _, logits in passes:
            compared = [tokens[row] for row in rows]
            if derivatives is not None:
                assert gold is not None, "a lead is that of the right token"
                with torch.enable_grad():
                    places = [gold[row] for row in rows]
                    ahead = leads(at_least_float32(logits), compared, places)
                    derivatives[rows] = self.derivatives_of(ahead).to(derivatives)
            found.append((rows, log_probabilities_of(logits.detach(), compared)))
        for rows, values in found:  # only now, as to read them waits for the device
            counts = [len(tokens[row]) for row in rows]
            for row, part in zip(rows, values.cpu().split(counts), strict=True):
                results[row] = part
        return results

    @torch.no_grad()
    def likelihoods(
        self,
        requests: Sequence[Request],
        candidates: Sequence[int] | None = None,
        derivative_of: ValueOf | None = None,
        *,
        skip_last: bool = False,
    ) -> Likelihoods:
        """Score N continuations after their prompts.

        :param requests: pairs of prompt and continuation tokens, both non-empty.
        :param candidates: for each request its candidate; all the first if not given.
        :param derivative_of: what is differentiated by the coefficients, if anything.
        :param skip_last: whether the last token of a continuation, which nothing follows, stays out
            of the passes.
        :return: `Likelihoods` of N continuations, in the order of the requests.
        """
        result = Likelihoods.empty(len(requests))
        derivatives: list[torch.Tensor] = [torch.empty(0)] * len(requests)
        differentiate = derivative_of is not None
        passes = self._score(requests, candidates, skip_last=skip_last, differentiate=differentiate)
        measured: list[tuple[list[int], list[int], MeasuredTokens]] = []
        for rows, lengths, logits in passes:
            targets: list[int] = []
            for row in rows:
                targets += requests[row][1]
            target_ids = to_device(torch.tensor(targets), self.device)  # (Q,)
            if derivative_of is not None:
                with torch.enable_grad():
                    values = derivative_of(at_least_float32(logits), target_ids, lengths)
                    found = self.derivatives_of(values)
                for row, derivative in zip(rows, found, strict=True):
                    derivatives[row] = derivative
            measured.append((rows, lengths, measure_tokens(logits.detach(), target_ids)))
        for rows, lengths, of_tokens in measured:  # only now, as to read them waits for the device
            result.fill(rows, read_likelihoods(of_tokens, lengths))
        if differentiate:
            result = replace(result, derivatives=torch.stack(derivatives))
        return result

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        candidates: Sequence[int] | None = None,
        should_stop: Callable[[int, str], bool] | None = None,
        forced_tokens: Sequence[Sequence[int]] | None = None,
        *,
        keep_special: bool = False,
        may_stop: Callable[[int, int], bool] | None = None,
    ) -> list[str]:
        """Greedy continuations of N prompts, as text.

        A continuation ends at an end-of-text token, or after `max_new_tokens`.

        :param candidates: for each prompt its candidate; all the first if not given.
        :param should_stop: takes the number of a prompt and its text so far; true ends the text.
        :param forced_tokens: for each prompt the first tokens of its continuation, where they are
            known. They count as new tokens.
        :param may_stop: takes the number of a prompt and the last token of its text; false says
            that `should_stop` would be. Without it every text is decoded after every token.
        :param keep_special: whether special tokens stay in the text. The end of text never does.
        :raises ArithmeticError: if a model gives NaN.
        """
        candidates = candidates or [0] * len(prompts)
        forced_tokens = forced_tokens or [()] * len(prompts)
        replies = [list(tokens) for tokens in forced_tokens]

        def is_complete(number: int) -> bool:
            reply = replies[number]
            asks = should_stop is not None and (may_stop is None or may_stop(number, reply[-1]))
            if asks and should_stop is not None and should_stop(number, self.decode(reply)):
                return True
            return len(reply) >= max_new_tokens

        needed = []  # the numbers of the prompts that need more tokens
        for number, reply in enumerate(replies):
            if len(reply) < max_new_tokens:
                needed.append(number)
        self._continue(needed, prompts, candidates, replies, max_new_tokens, is_complete)
        return [self.prompts.decode(reply, special=keep_special) for reply in replies]

    def _continue(
        self,
        numbers: Sequence[int],
        prompts: Sequence[Sequence[int]],
        candidates: Sequence[int],
        replies: list[list[int]],
        max_new_tokens: int,
        is_complete: Callable[[int], bool],
    ) -> None:
        """Append greedy tokens to some replies, without the end of text.

        :param numbers: of the prompts whose replies go on.
        :param candidates: of all prompts.
        :param replies: to all prompts, with the tokens that are known.
        :param is_complete: takes the number of a prompt whose reply has a further token.
        """
        rows = []
        for number in numbers:
            prompt = prompts[number]
            tokens = (*prompt, *replies[number])
            rows.append(Row(tokens, candidates[number], shareable=len(prompt) - 1))
        static_steps = max_new_tokens - 1 if self._takes_static_cache(max_new_tokens) else 0
        for batch in self._prepare(rows, max_new_tokens):
            batch = replace(batch, rows=[numbers[row] for row in batch.rows])
            decode_greedily(
                batch,
                self.forward,
                replies,
                end_tokens=self.end_tokens,
                is_complete=is_complete,
                drop_rows=self.capabilities.drop_rows,
                least_ended=0.0 if self.device.type == "cpu" else LEAST_ENDED,
                static_steps=static_steps,
            )

    def _takes_static_cache(self, max_new_tokens: int) -> bool:
        """Whether so many tokens are decoded with a static cache: where it was found faster."""
        least = self.batch_sizes.static_from
        return self.capabilities.static_cache and least is not None and max_new_tokens >= least
