"""What scored tasks ask of a language model: log-likelihoods of continuations, and greedy text.

One object holds a transformers causal LM and its tokenizer. Batches are sorted by length and padded on the left, so
that the scored tokens stand at the end and the output layer runs on those positions only. First tokens that several
requests of a candidate share run once, and so do layers that all candidates have in common.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import signature

import torch
from torch.nn.utils.rnn import pad_sequence

from evox_evogm.problems.inference.prefix_cache import shared_lengths
from evox_evogm.problems.inference.shared_layers import lower_layers_once

MAX_MEMORY = 2 * 2**30
TEXTS = 2**16  # decoded texts that are kept
# What a pass costs beside its tokens, in tokens: small products run at a lower rate, operations have to be called. Measured
# for SmolLM2-135M in bfloat16 on two cores: 88 + 40.
PASS_TOKENS = 128
WINDOWS = (
    "sliding_window",
    "window_size",
    "attention_chunk_size",
)  # settings of models whose attention looks at columns
Select = Callable[[Sequence[int], torch.Tensor], None]
Request = tuple[tuple[int, ...], tuple[int, ...]]  # the tokens of a prompt and of its continuation


@dataclass(frozen=True)
class Likelihoods:
    """Of N continuations: `log_probability` (N,), the sum over tokens in nats; `first_miss` (N,), the index of the
    first continuation token that greedy decoding would not choose, or the number of tokens if it chooses all;
    `missed_token` (N,), what it would choose there (-1 where nothing was missed); and `margin` (N,), by how much the logit of
    a token exceeds the largest other one, the least of a continuation: above 0 if greedy decoding chooses all."""

    log_probability: torch.Tensor
    first_miss: torch.Tensor
    missed_token: torch.Tensor
    margin: torch.Tensor


class LanguageModel:
    """A causal LM with its tokenizer.

    :param model: a transformers causal LM, in evaluation mode.
    :param tokenizer: its tokenizer.
    :param batch_tokens: the most tokens, padding included, in one forward pass.
    :param max_memory: bytes that a forward pass may take beyond the model, as estimated; a single row may take more.
    :raises ValueError: if the tokenizer has no end-of-text token.

    Inside `with language_model.candidates(population)` every request may name the candidate that is to answer it; requests to
    different candidates share batches.
    """

    def __init__(self, model, tokenizer, *, batch_tokens: int = 2048, max_memory: int = MAX_MEMORY):
        if tokenizer.eos_token_id is None:
            raise ValueError("base: expected a tokenizer with an end-of-text token, found none")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.max_memory = max_memory
        self.memory = memory_per_token(model)
        # A padding token is never attended to, so any will do where the tokenizer has none.
        self.pad_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
        self._prompt_tokens: dict[tuple[str, bool], tuple[int, ...]] = {}
        self._continuation_tokens: dict[tuple[str, bool], tuple[int, ...]] = {}
        self.decode_and_keep = lru_cache(TEXTS)(
            self.decode
        )  # a search meets the same short answers again and again
        self._select: Select | None = None
        self._shared_layers = 0

    @contextmanager
    def candidates(self, select: Select, shared_layers: int = 0) -> Iterator[None]:
        """Inside the block, `select` hears before each forward pass which candidate every row of the batch asks.

        :param select: takes a candidate per row of the batch, and the rows that the output layer will see.
        :param shared_layers: how many of the first decoder layers are the same for all candidates.
        """
        self._select, self._shared_layers = select, shared_layers
        try:
            yield
        finally:
            self._select, self._shared_layers = None, 0

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def end_token(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def end_tokens(self) -> set[int]:
        """All tokens that end a text: the tokenizer's, and those of the model's generation settings."""
        more = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        return {self.end_token, *(more if isinstance(more, list) else [more])} - {None}

    def prompt_tokens(self, prompt: str, *, chat: bool = False) -> tuple[int, ...]:
        """Tokens of a prompt with the tokenizer's own first tokens; with `chat`, through its chat template.

        :raises ValueError: if `chat` is asked of a tokenizer without a template.
        """
        if (prompt, chat) not in self._prompt_tokens:
            if chat and not self.tokenizer.chat_template:
                raise ValueError(
                    "base: a task asks for chat prompts, but its tokenizer has no chat template"
                )
            if chat:
                message = [{"role": "user", "content": prompt}]
                text = self.tokenizer.apply_chat_template(
                    message, add_generation_prompt=True, tokenize=False
                )
            else:
                text = prompt
            tokens = self.tokenizer(text, add_special_tokens=not chat)["input_ids"]
            if not tokens:
                raise ValueError(f"task: expected prompts of at least one token, found {prompt!r}")
            self._prompt_tokens[prompt, chat] = tuple(tokens)
        return self._prompt_tokens[prompt, chat]

    def continuation_tokens(self, text: str, *, chat: bool = False) -> tuple[int, ...]:
        """Tokens of an answer: after a blank in plain prompts, at the start of the reply in a chat."""
        if (text, chat) not in self._continuation_tokens:
            tokens = self.tokenizer(text if chat else f" {text}", add_special_tokens=False)[
                "input_ids"
            ]
            if not tokens:
                raise ValueError(f"task: expected answers of at least one token, found {text!r}")
            self._continuation_tokens[text, chat] = tuple(tokens)
        return self._continuation_tokens[text, chat]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _batches(
        self,
        parts: Sequence[Sequence[int]],
        scored: Sequence[int] | int = 1,
        kept: int | None = None,
    ) -> Iterator[list[int]]:
        """Row numbers in batches of similar length, each within `batch_tokens` and `max_memory` (or one row).

        :param parts: the tokens of each row that the pass runs.
        :param scored: at how many positions of each row logits are needed.
        :param kept: how many other tokens of a row are in the cache, or will be; None without a cache.
        """
        scored = [scored] * len(parts) if isinstance(scored, int) else scored
        for rows in similar_lengths(parts, self.batch_tokens):
            batch: list[int] = []
            logits, width = 0, len(parts[rows[0]])
            for row in rows:
                count = len(batch) + 1
                logits += scored[row]
                cached = 0 if kept is None else width + kept
                memory = (
                    count * (width * self.memory.token + cached * self.memory.cached)
                    + logits * self.memory.logits
                )
                if batch and (count * width > self.batch_tokens or memory > self.max_memory):
                    yield batch
                    batch, logits = [], scored[row]
                batch.append(row)
            yield batch

    def _pad_left(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        tokens = torch.tensor(
            [[self.pad_id] * (width - len(row)) + list(row) for row in rows]
        )  # (N, C)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])  # (N, C)
        return tokens.to(self.device), mask.to(self.device)

    @contextmanager
    def _scored_positions_only(self, wanted: torch.Tensor) -> Iterator[None]:
        """The output layer sees the wanted positions (Q, D) of what the last layer gives (N, C, D)."""
        layer = self.model.get_output_embeddings()
        handle = layer.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].flatten(0, 1)[wanted], *inputs[1:])
        )
        try:
            yield
        finally:
            handle.remove()

    def _forward(
        self,
        candidates: Sequence[int],
        tokens: torch.Tensor,
        mask: torch.Tensor,
        scored: Sequence[int],
        cache=None,
        back: int = 0,
    ) -> torch.Tensor:
        """Logits (Q, V) of the last positions of a batch (N, C), row after row.

        :param scored: at how many positions of each row they are wanted; Q together.
        :param cache: of earlier positions, which the mask covers too; these are added to it.
        :param back: how many positions at the end of each row come after those.
        """
        rows, width = tokens.shape
        owners = torch.arange(rows).repeat_interleave(torch.tensor(scored))  # (Q,)
        ends = [(row + 1) * width - back for row in range(rows)]
        wanted = torch.cat(
            [torch.arange(end - count, end) for end, count in zip(ends, scored, strict=True)]
        ).to(self.device)
        if self._select is not None:
            self._select(candidates, owners)
        below = nullcontext()
        if self._shared_layers and cache is None:
            together, same = torch.stack([tokens, mask]).unique(dim=1, return_inverse=True)
            if together.shape[1] < rows:
                tokens, mask = together
                below = lower_layers_once(self.model, self._shared_layers, same)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -width:]
        with self._scored_positions_only(wanted), below:
            return self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits

    def _may_share_prefixes(self, longest: int, room: int) -> bool:
        """Padding stands between a prefix and the rest of a row: a model must take positions as they are given, and no window
        over the columns may be so narrow that padding pushes tokens out of it."""
        windows = (getattr(self.model.config, name, None) for name in WINDOWS)
        wide = all(window is None or 2 * longest + room <= window for window in windows)
        return wide and "position_ids" in signature(type(self.model).forward).parameters

    def _heads(
        self,
        rows: Sequence[tuple[int, ...]],
        limits: Sequence[int],
        candidates: Sequence[int],
        room: int,
    ) -> list["Head"]:
        """The rows by the first tokens that they share, with an empty head where they share none."""
        shared = [0] * len(rows)
        if self._may_share_prefixes(max(map(len, rows), default=0), room):
            shared = shared_lengths(rows, limits, candidates)
        heads: dict[tuple[int, tuple[int, ...]], Head] = {}
        for row, (tokens, length, candidate) in enumerate(
            zip(rows, shared, candidates, strict=True)
        ):
            key = (candidate if length else 0, tokens[:length])
            heads.setdefault(key, Head(*key, rows=[])).rows.append(row)
        return list(heads.values())

    def _prefill(self, heads: Sequence["Head"]):
        """The cache and the mask of some heads, a row each; nothing for empty ones."""
        from transformers import DynamicCache

        if not heads[0].tokens:
            return None, None
        cache = DynamicCache(config=self.model.config)
        tokens, mask = self._pad_left([head.tokens for head in heads])
        self._forward([head.candidate for head in heads], tokens, mask, [0] * len(heads), cache)
        return cache, mask

    def _starts(
        self,
        rows: Sequence[tuple[int, ...]],
        limits: Sequence[int],
        candidates: Sequence[int],
        scored: Sequence[int] | int = 1,
        room: int = 0,
    ) -> Iterator["Start"]:
        """Batches of rows, ready for a forward pass over the tokens that they do not share.

        :param limits: how many first tokens of each row may be shared.
        :param scored: at how many positions of each row logits are needed.
        :param room: how many tokens will follow.
        """
        heads = self._heads(rows, limits, candidates, room)
        bare = [[index] for index, head in enumerate(heads) if not head.tokens]
        full = [index for index, head in enumerate(heads) if head.tokens]
        prefills = [
            [full[i] for i in batch]
            for batch in self._batches([heads[i].tokens for i in full], 0, kept=0)
        ]
        for group in bare + prefills:
            cache, head_mask = self._prefill([heads[index] for index in group])
            members = [
                (place, row) for place, index in enumerate(group) for row in heads[index].rows
            ]
            tails = [rows[row][len(heads[group[place]].tokens) :] for place, row in members]
            counts = scored if isinstance(scored, int) else [scored[row] for _, row in members]
            kept = (
                None
                if cache is None and not room
                else room + (0 if cache is None else head_mask.shape[1])
            )
            for batch in self._batches(tails, counts, kept):
                tokens, mask = self._pad_left([tails[index] for index in batch])
                part = None
                if cache is not None:
                    places = torch.tensor(
                        [members[index][0] for index in batch], device=self.device
                    )
                    part, mask = (
                        rows_of_cache(cache, places),
                        torch.cat([head_mask[places], mask], 1),
                    )
                yield Start([members[index][1] for index in batch], tokens, mask, part)

    @torch.no_grad()
    def next_token_log_probabilities(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: Sequence[Sequence[int]],
        candidates: Sequence[int] | None = None,
    ) -> list[torch.Tensor]:
        """Log-probabilities in nats of single tokens after their prompt, one forward pass per prompt.

        :param prompts: N prompts.
        :param tokens: for each prompt the tokens asked for.
        :param candidates: for each prompt the candidate it asks; all the first if not given.
        :return: N tensors on the CPU, one number per token asked for.
        """
        candidates = candidates or [0] * len(prompts)
        results = [torch.empty(0)] * len(prompts)
        for start in self._starts(prompts, [len(prompt) - 1 for prompt in prompts], candidates, 1):
            asked = [candidates[row] for row in start.rows]
            logits = self._forward(
                asked, start.tokens, start.mask, [1] * len(asked), start.cache
            ).float()  # (N, V)
            total = logits.logsumexp(-1)  # (N,)
            for index, row in enumerate(start.rows):
                results[row] = (logits[index, list(tokens[row])] - total[index]).cpu()
        return results

    @torch.no_grad()
    def likelihoods(
        self, requests: Sequence[Request], candidates: Sequence[int] | None = None
    ) -> Likelihoods:
        """Score N continuations after their prompts.

        :param requests: pairs of prompt and continuation tokens, both non-empty.
        :param candidates: for each request the candidate it asks; all the first if not given.
        :return: `Likelihoods` of N rows on the CPU, in the order of the requests.
        """
        candidates = candidates or [0] * len(requests)
        log_probability = torch.zeros(len(requests))
        first_miss = torch.zeros(len(requests), dtype=torch.long)
        missed_token = torch.full((len(requests),), -1)
        margin = torch.zeros(len(requests))
        scored = [len(continuation) for _, continuation in requests]
        limits = [len(prompt) - 1 for prompt, _ in requests]
        for start in self._starts(
            [prompt + answer for prompt, answer in requests], limits, candidates, scored
        ):
            asked, counts = (
                [candidates[row] for row in start.rows],
                [scored[row] for row in start.rows],
            )
            logits = self._forward(
                asked, start.tokens, start.mask, counts, start.cache, back=1
            )  # (Q, V)
            targets = torch.tensor(
                [token for row in start.rows for token in requests[row][1]], device=self.device
            )  # (Q,)
            choices = logits.argmax(-1)
            logits = logits.float()
            gold = logits.gather(-1, targets[:, None])[:, 0]
            scores = gold - logits.logsumexp(-1)
            first, second = logits.topk(2, -1).values.unbind(-1)
            margins = gold - torch.where(choices == targets, second, first)
            by_row = [
                pad_sequence(values.cpu().split(counts))
                for values in (scores, choices, targets, margins)
            ]  # (W, N)
            scores, choices, targets, margins = by_row
            rows, lengths = torch.tensor(start.rows), torch.tensor(counts)
            place = torch.arange(len(scores))[:, None]  # (W, 1)
            missed = (choices != targets) & (place < lengths)
            first = torch.where(missed, place, lengths).amin(0)  # (N,)
            log_probability[rows] = scores.sum(0)
            margin[rows] = torch.where(place < lengths, margins, torch.inf).amin(0)
            first_miss[rows] = first
            chosen = choices.gather(0, first.clamp(max=len(choices) - 1)[None])[0]
            missed_token[rows] = torch.where(first < lengths, chosen, -1)
        return Likelihoods(log_probability, first_miss, missed_token, margin)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        candidates: Sequence[int] | None = None,
        enough: Callable[[int, str], bool] | None = None,
        begun: Sequence[Sequence[int]] | None = None,
    ) -> list[str]:
        """Greedy continuations of N prompts as text without special tokens, stopped at the end-of-text token.

        :param candidates: for each prompt the candidate it asks; all the first if not given.
        :param enough: hears the number of a prompt and its text so far, and says whether the rest does not matter.
        :param begun: for each prompt the first tokens of its continuation, where they are known.
        :raises ArithmeticError: if a model gives NaN.
        """
        candidates = candidates or [0] * len(prompts)
        begun = begun or [()] * len(prompts)
        replies = [list(known) for known in begun]
        open_rows = [row for row, reply in enumerate(replies) if len(reply) < max_new_tokens]
        rows = [(*prompts[row], *begun[row]) for row in open_rows]
        limits = [len(prompts[row]) - 1 for row in open_rows]
        for start in self._starts(
            rows, limits, [candidates[row] for row in open_rows], room=max_new_tokens
        ):
            numbers = [open_rows[row] for row in start.rows]
            self._decode_greedily(
                replace(start, rows=numbers), replies, max_new_tokens, candidates, enough
            )
        return [self.decode(reply) for reply in replies]

    def _decode_greedily(
        self,
        start: "Start",
        replies: list[list[int]],
        max_new_tokens: int,
        candidates: Sequence[int],
        enough: Callable[[int, str], bool] | None,
    ) -> None:
        """Append greedy tokens to the replies, without the end of text. Rows that have ended leave the batch and its cache."""
        from transformers import DynamicCache

        running, ends = start.rows, self.end_tokens
        cache = DynamicCache(config=self.model.config) if start.cache is None else start.cache
        tokens, mask = start.tokens, start.mask
        while True:
            asked = [candidates[row] for row in running]
            logits = self._forward(asked, tokens, mask, [1] * len(asked), cache)  # (N, V)
            chosen = logits.argmax(-1)  # (N,)
            if logits.gather(-1, chosen[:, None]).isnan().any():
                raise ArithmeticError("expected logits, found NaN")
            stay = []
            for index, token in enumerate(chosen.tolist()):
                if token in ends:
                    continue
                row = running[index]
                replies[row].append(token)
                ended = enough is not None and enough(row, self.decode(replies[row]))
                if not ended and len(replies[row]) < max_new_tokens:
                    stay.append(index)
            if not stay:
                return
            if len(stay) < len(running):
                rows = torch.tensor(stay, device=self.device)
                cache.batch_select_indices(rows)
                chosen, mask, running = chosen[rows], mask[rows], [running[index] for index in stay]
            tokens, mask = chosen[:, None], torch.cat([mask, mask.new_ones(len(running), 1)], 1)


@dataclass(frozen=True)
class Head:
    """First tokens that some rows of one candidate share, and which rows."""

    candidate: int
    tokens: tuple[int, ...]
    rows: list[int]


@dataclass(frozen=True)
class Start:
    """A batch before its pass: row numbers, tokens (N, C) not run yet, the mask of all (N, cached + C), and the cache of what
    was run."""

    rows: list[int]
    tokens: torch.Tensor
    mask: torch.Tensor
    cache: object | None


def similar_lengths(parts: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Row numbers, longest first, cut into runs so that padding and the fixed cost of passes come to the least.

    A run is padded to its first length, and split further into passes of `batch_tokens`. Rows of the same tokens, which
    different candidates may have, stand together.
    """
    lengths = [len(part) for part in parts]
    rows = sorted(range(len(parts)), key=lambda row: (-lengths[row], parts[row]))
    starts = [
        i for i, row in enumerate(rows) if i == 0 or lengths[row] != lengths[rows[i - 1]]
    ]  # of equal lengths
    ends = [*starts[1:], len(rows)]
    least, cut = (
        [0.0],
        [0],
    )  # over the first k lengths: the cost in tokens, and where the last run begins
    for k in range(1, len(starts) + 1):
        tokens = [(ends[k - 1] - starts[i]) * lengths[rows[starts[i]]] for i in range(k)]
        costs = [
            least[i] + count + PASS_TOKENS * -(-count // batch_tokens)
            for i, count in enumerate(tokens)
        ]
        least.append(min(costs))
        cut.append(costs.index(least[-1]))
    runs, k = [], len(starts)
    while k:
        runs.append(rows[starts[cut[k]] : ends[k - 1]])
        k = cut[k]
    return runs[::-1]


def rows_of_cache(cache, rows: torch.Tensor):
    """A cache that holds some rows of another one, which stays as it is."""
    part = copy.copy(cache)
    part.layers = [copy.copy(layer) for layer in cache.layers]
    part.batch_select_indices(rows)  # replaces the tensors of the copied layers
    return part


@dataclass(frozen=True)
class Memory:
    """Bytes, as estimated: of a `token` in a pass, of a `cached` one, and of the `logits` at one position."""

    token: int
    cached: int
    logits: int


def memory_per_token(model: torch.nn.Module) -> Memory:
    """Estimate the memory of forward passes.

    Of the layers one is alive at a time, with a few tensors of its largest width; keys and values are kept of all, twice while
    a cache grows. Logits exist in the model's dtype, in float32, and in passing once more.
    """
    output, size = model.get_output_embeddings(), model.dtype.itemsize
    layers = [
        module for module in model.modules() if is_projection(module) and module is not output
    ]
    hidden = output.weight.shape[1]
    widest = max((max(width_of(module)) for module in layers), default=hidden)
    depth = getattr(model.config, "num_hidden_layers", 1)
    return Memory(8 * widest * size, 4 * depth * hidden * size, (size + 8) * output.weight.shape[0])


def is_projection(module: torch.nn.Module) -> bool:
    """Whether a module is a matrix product: Linear, or the Conv1D of GPT-2."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def width_of(module: torch.nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a projection; the weight of a quantised one has another shape."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return module.weight.shape[0], module.nf
