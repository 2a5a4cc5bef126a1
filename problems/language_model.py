"""What scored tasks ask of a language model: log-likelihoods of continuations, and greedy text.

One object holds a transformers causal LM and its tokenizer. Batches are sorted by length and padded on the left, so
that the scored tokens stand at the end and the output layer runs on those positions only.
"""

from collections.abc import Iterator, Sequence
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

    def last_logits(self, rows: Sequence[Sequence[int]], keep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of N rows padded on the left to (N, C), and the logits (N, keep, V) at their last `keep` positions."""
        tokens, mask = self._pad_left(rows)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with self._contiguous_output_layer():
            output = self.model(
                input_ids=tokens, attention_mask=mask, position_ids=positions, logits_to_keep=keep, use_cache=False
            )
        return tokens, output.logits

    @torch.no_grad()
    def next_token_log_probabilities(self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> list:
        """Log-probabilities in nats of single tokens after their prompt, one forward pass per prompt.

        :param prompts: N prompts.
        :param tokens: for each prompt the tokens asked for.
        :return: N tensors on the CPU, one number per token asked for.
        """
        results = [torch.empty(0)] * len(prompts)
        for batch in self._batches([len(prompt) for prompt in prompts]):
            _, logits = self.last_logits([prompts[row] for row in batch], 1)
            scores = logits[:, 0].float().log_softmax(-1).cpu()  # (N, V)
            for index, row in enumerate(batch):
                results[row] = scores[index, list(tokens[row])]
        return results

    @torch.no_grad()
    def likelihoods(self, requests: Sequence[Request]) -> Likelihoods:
        """Score N continuations after their prompts.

        :param requests: pairs of prompt and continuation tokens, both non-empty.
        :return: `Likelihoods` of N rows on the CPU, in the order of the requests.
        """
        log_probability = torch.zeros(len(requests))
        first_miss = torch.zeros(len(requests), dtype=torch.long)
        missed_token = torch.full((len(requests),), -1)
        for batch in self._batches([len(prompt) + len(continuation) for prompt, continuation in requests]):
            longest = max(len(requests[row][1]) for row in batch)
            tokens, logits = self.last_logits([sum(requests[row], ()) for row in batch], longest + 1)
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
    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        """Greedy continuations of N prompts as text without special tokens, stopped at the end-of-text token."""
        texts = [""] * len(prompts)
        for batch in self._batches([len(prompt) + max_new_tokens for prompt in prompts]):
            tokens, mask = self._pad_left([prompts[row] for row in batch])
            with self._contiguous_output_layer():
                output = self.model.generate(
                    input_ids=tokens,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    repetition_penalty=None,
                    pad_token_id=self.pad_id,
                    eos_token_id=self.end_token,
                )[:, tokens.shape[1] :]
            for row, reply in zip(batch, output.tolist(), strict=True):
                end = reply.index(self.end_token) if self.end_token in reply else len(reply)
                texts[row] = self.decode(reply[:end])
        return texts
