"""What scored tasks ask of a language model: log-likelihoods of continuations, and greedy text.

One object holds a transformers causal LM and its tokenizer. Batches are sorted by length and padded on the left, so
that the scored tokens stand at the end and the output layer runs on those positions only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Request = tuple[tuple[int, ...], tuple[int, ...]]  # the tokens of a prompt and of its continuation


@dataclass(frozen=True)
class Likelihoods:
    """Of N continuations: `log_probability` (N,), the sum over tokens in nats; `first_miss` (N,), the index of the
    first continuation token that greedy decoding would not choose, or the number of tokens if it chooses all; and
    `missed_token` (N,), what it would choose there (-1 where nothing was missed)."""

    log_probability: torch.Tensor
    first_miss: torch.Tensor
    missed_token: torch.Tensor


class LanguageModel:
    """A causal LM with its tokenizer.

    :param model: a transformers causal LM, in evaluation mode.
    :param tokenizer: its tokenizer.
    :param batch_tokens: the most tokens, padding included, in one forward pass.
    :raises ValueError: if the tokenizer has no end-of-text token.

    Inside `with language_model.candidates(population)` every request may name the candidate that is to answer it; requests to
    different candidates share batches.
    """

    def __init__(self, model, tokenizer, *, batch_tokens: int = 2048):
        if tokenizer.eos_token_id is None:
            raise ValueError("base: expected a tokenizer with an end-of-text token, found none")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        # A padding token is never attended to, so any will do where the tokenizer has none.
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._prompt_tokens: dict[tuple[str, bool], tuple[int, ...]] = {}
        self._select: Callable[[Sequence[int]], None] | None = None

    @contextmanager
    def candidates(self, select: Callable[[Sequence[int]], None]) -> Iterator[None]:
        """Inside the block, `select` hears before each forward pass which candidate every row of the batch asks."""
        self._select = select
        try:
            yield
        finally:
            self._select = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def end_token(self) -> int:
        return self.tokenizer.eos_token_id

    def prompt_tokens(self, prompt: str, *, chat: bool = False) -> tuple[int, ...]:
        """Tokens of a prompt with the tokenizer's own first tokens; with `chat`, through its chat template.

        :raises ValueError: if `chat` is asked of a tokenizer without a template.
        """
        if (prompt, chat) not in self._prompt_tokens:
            if chat and not self.tokenizer.chat_template:
                raise ValueError("base: a task asks for chat prompts, but its tokenizer has no chat template")
            if chat:
                message = [{"role": "user", "content": prompt}]
                text = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            else:
                text = prompt
            tokens = self.tokenizer(text, add_special_tokens=not chat)["input_ids"]
            self._prompt_tokens[prompt, chat] = tuple(tokens)
        return self._prompt_tokens[prompt, chat]

    def continuation_tokens(self, text: str, *, chat: bool = False) -> tuple[int, ...]:
        """Tokens of an answer: after a blank in plain prompts, at the start of the reply in a chat."""
        return tuple(self.tokenizer(text if chat else f" {text}", add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers in batches of similar length, each within `batch_tokens` (or one row)."""
        batch: list[int] = []
        for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
            if batch and (len(batch) + 1) * lengths[batch[0]] > self.batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _pad_left(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        tokens = torch.tensor([[self.pad_id] * (width - len(row)) + list(row) for row in rows])  # (N, C)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])  # (N, C)
        return tokens.to(self.device), mask.to(self.device)

    @contextmanager
    def _contiguous_output_layer(self) -> Iterator[None]:
        """Without this the last positions reach the output layer as a view, which torch multiplies with one copy of the
        (V, D) weight per row: half the time of a pass on a CPU."""
        layer = self.model.get_output_embeddings()
        handle = layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
        try:
            yield
        finally:
            handle.remove()

    def _forward(
        self, candidates: Sequence[int], tokens: torch.Tensor, mask: torch.Tensor, keep: int, **cache
    ) -> torch.Tensor:
        """Logits (N, keep, V) at the last positions of a batch (N, C); with a cache, the mask covers what is in it too."""
        if self._select is not None:
            self._select(candidates)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        with self._contiguous_output_layer():
            return self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                logits_to_keep=keep,
                **(cache or {"use_cache": False}),
            ).logits

    @torch.no_grad()
    def next_token_log_probabilities(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], candidates: Sequence[int] | None = None
    ) -> list[torch.Tensor]:
        """Log-probabilities in nats of single tokens after their prompt, one forward pass per prompt.

        :param prompts: N prompts.
        :param tokens: for each prompt the tokens asked for.
        :param candidates: for each prompt the candidate it asks; all the first if not given.
        :return: N tensors on the CPU, one number per token asked for.
        """
        candidates = candidates or [0] * len(prompts)
        results = [torch.empty(0)] * len(prompts)
        for batch in self._batches([len(prompt) for prompt in prompts]):
            logits = self._forward([candidates[row] for row in batch], *self._pad_left([prompts[row] for row in batch]), 1)
            scores = logits[:, 0].float().log_softmax(-1).cpu()  # (N, V)
            for index, row in enumerate(batch):
                results[row] = scores[index, list(tokens[row])]
        return results

    @torch.no_grad()
    def likelihoods(self, requests: Sequence[Request], candidates: Sequence[int] | None = None) -> Likelihoods:
        """Score N continuations after their prompts.

        :param requests: pairs of prompt and continuation tokens, both non-empty.
        :param candidates: for each request the candidate it asks; all the first if not given.
        :return: `Likelihoods` of N rows on the CPU, in the order of the requests.
        """
        candidates = candidates or [0] * len(requests)
        log_probability = torch.zeros(len(requests))
        first_miss = torch.zeros(len(requests), dtype=torch.long)
        missed_token = torch.full((len(requests),), -1)
        for batch in self._batches([len(prompt) + len(continuation) for prompt, continuation in requests]):
            longest = max(len(requests[row][1]) for row in batch)
            tokens, mask = self._pad_left([sum(requests[row], ()) for row in batch])
            logits = self._forward([candidates[row] for row in batch], tokens, mask, longest + 1)
            logits = logits[:, :-1]  # (N, longest, V): position i predicts token i of the last `longest`
            targets = tokens[:, -longest:]
            scores = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0].cpu()
            choices, targets = logits.argmax(-1).cpu(), targets.cpu()
            for index, row in enumerate(batch):
                count = len(requests[row][1])
                log_probability[row] = scores[index, -count:].sum()
                missed = (choices[index, -count:] != targets[index, -count:]).nonzero().flatten()
                first_miss[row] = missed[0] if len(missed) else count
                if len(missed):
                    missed_token[row] = choices[index, longest - count + missed[0]]
        return Likelihoods(log_probability, first_miss, missed_token)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        candidates: Sequence[int] | None = None,
        enough: Callable[[int, str], bool] | None = None,
    ) -> list[str]:
        """Greedy continuations of N prompts as text without special tokens, stopped at the end-of-text token.

        :param candidates: for each prompt the candidate it asks; all the first if not given.
        :param enough: hears the number of a prompt and its text so far, and says whether the rest does not matter.
        """
        candidates = candidates or [0] * len(prompts)
        texts = [""] * len(prompts)
        for batch in self._batches([len(prompt) + max_new_tokens for prompt in prompts]):
            replies = self._greedy(batch, prompts, max_new_tokens, candidates, enough)
            for row, reply in zip(batch, replies, strict=True):
                texts[row] = self.decode(reply)
        return texts

    def _greedy(
        self,
        batch: Sequence[int],
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        candidates: Sequence[int],
        enough: Callable[[int, str], bool] | None,
    ) -> list[list[int]]:
        """Greedy tokens of some prompts, without the end of text. Rows that have ended leave the batch and its cache."""
        from transformers import DynamicCache

        replies: list[list[int]] = [[] for _ in batch]
        running = list(range(len(batch)))  # the row of the batch as it was
        cache = DynamicCache(config=self.model.config)
        tokens, mask = self._pad_left([prompts[row] for row in batch])
        while True:
            asked = [candidates[batch[row]] for row in running]
            chosen = self._forward(asked, tokens, mask, 1, past_key_values=cache, use_cache=True)[:, -1].argmax(-1)  # (N,)
            stay = []
            for index, token in enumerate(chosen.tolist()):
                if token == self.end_token:
                    continue
                row = running[index]
                replies[row].append(token)
                ended = enough is not None and enough(batch[row], self.decode(replies[row]))
                if not ended and len(replies[row]) < max_new_tokens:
                    stay.append(index)
            if not stay:
                return replies
            if len(stay) < len(running):
                rows = torch.tensor(stay, device=self.device)
                cache.batch_select_indices(rows)
                chosen, mask, running = chosen[rows], mask[rows], [running[index] for index in stay]
            tokens, mask = chosen[:, None], torch.cat([mask, mask.new_ones(len(running), 1)], 1)
