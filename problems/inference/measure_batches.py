"""Times passes of a language model of growing size, and chooses how large batches are."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from evox_evogm.problems.inference.batch_sizes import BatchSizes, Timing, time_passes
from evox_evogm.problems.inference.device_clock import Clock, clock_of
from evox_evogm.problems.inference.measure_static import measure_static
from evox_evogm.problems.inference.prefix_cache import copy_cache, rows_of_cache

if TYPE_CHECKING:
    from evox_evogm.problems.inference.language_model import LanguageModel

WIDTH = 64  # tokens of each row
PROMPT_ROWS = tuple(2**power for power in range(1, 12))  # up to 131,072 tokens
STEP_ROWS = tuple(2**power for power in range(2, 14))  # up to 8,192 rows


def measure_batch_sizes(
    model: "LanguageModel", *, candidates: int = 1, clock: Clock | None = None
) -> BatchSizes:
    """Choose how large batches are, from timed passes over random tokens.

    :param model: as it will score: inside `model.candidates(...)` for several.
    :param candidates: how many there are. Rows belong to them in turn.
    :param clock: gives seconds once the device has done its work; by default that of the machine.
    """
    batches = RandomBatches(model, candidates)
    clock = clock or clock_of(model.device)
    prompt_rows = [rows for rows in PROMPT_ROWS if batches.prompts_fit(rows)]
    if not model.capabilities.batch_rows or not prompt_rows:
        prompt_rows = [1]
    sizes = [rows * WIDTH for rows in prompt_rows]
    prompts = time_passes(sizes, batches.prompts, clock)
    tokens = prompts.best_size(sizes)
    pass_seconds, token_seconds = prompts.line
    pass_tokens = round(pass_seconds / token_seconds)
    steps, rows = _measure_steps(model, batches, clock)
    if steps is None or rows is None:
        return BatchSizes(tokens, None, pass_tokens)
    step_seconds, _ = steps.line
    static_from = measure_static(model, batches, rows, clock)
    return BatchSizes(tokens, rows, pass_tokens, round(step_seconds / token_seconds), static_from)


def _measure_steps(
    model: "LanguageModel", batches: "RandomBatches", clock: Clock
) -> tuple[Timing | None, int | None]:
    """The times of decoding steps, and the rows of one; None and None if there are no steps."""
    able = model.capabilities
    if not (able.cache and able.batch_rows and able.drop_rows):
        return None, None
    sizes = [rows for rows in STEP_ROWS if batches.steps_fit(rows)]
    if not sizes:
        return None, None
    steps = time_passes(sizes, batches.step, clock)
    return steps, steps.best_size(sizes)


class RandomBatches:
    """Passes over random tokens.

    :param candidates: how many candidates rows belong to in turn.
    """

    def __init__(self, model: "LanguageModel", candidates: int):
        self.model = model
        self.candidates = candidates if model.capabilities.mix_candidates else 1
        generator = torch.Generator().manual_seed(0)
        self.row = torch.randint(model.known_tokens, (WIDTH,), generator=generator)

    def prompts_fit(self, rows: int) -> bool:
        """Whether a pass over so many prompts has memory, as estimated."""
        memory = self.model.memory
        return rows * (WIDTH * memory.token + memory.logits) <= self.model.max_memory

    def steps_fit(self, rows: int) -> bool:
        """Whether a step of so many rows has memory, as estimated."""
        memory = self.model.memory
        each = memory.token + (WIDTH + 1) * memory.cached + memory.logits
        return rows * each <= self.model.max_memory

    def owners(self, rows: int) -> list[int]:
        """The candidate of each row."""
        return [row % self.candidates for row in range(rows)]

    def prompts(self, tokens: int) -> Callable[[], None]:
        """A pass over prompts of so many tokens together, of whose last logits are needed."""
        model = self.model
        rows = tokens // WIDTH
        # Rows are turned round, so that layers which candidates share have different ones to run.
        turned = torch.stack([self.row.roll(row) for row in range(min(rows, WIDTH))])
        prompts = turned.repeat(-(-rows // len(turned)), 1)[:rows].to(model.device)
        mask = torch.ones_like(prompts)
        owners = self.owners(rows)
        return lambda: _run(model.forward(owners, prompts, mask, [1] * rows))

    def filled_cache(self, rows: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """A cache of prompts of `WIDTH` tokens, their mask `(N, WIDTH)`, and tokens `(N, 1)`."""
        model = self.model
        filled = model.forward.new_cache()
        row = self.row[None].to(model.device)
        model.forward([0], row, torch.ones_like(row), [0], filled)
        cache = rows_of_cache(filled, torch.zeros(rows, dtype=torch.int64, device=model.device))
        mask = torch.ones(rows, WIDTH, dtype=torch.int64, device=model.device)
        return cache, mask, row[:, :1].expand(rows, 1)

    def step(self, rows: int) -> Callable[[], None]:
        """A step of decoding behind prompts of `WIDTH` tokens."""
        model = self.model
        cache, mask, tokens = self.filled_cache(rows)
        mask = torch.cat([mask, mask[:, :1]], 1)
        owners = self.owners(rows)

        def run_step() -> None:
            # Each run adds to a copy, and finds the same width.
            _run(model.forward(owners, tokens, mask, [1] * rows, copy_cache(cache)))

        return run_step


def _run(logits: torch.Tensor) -> None:
    """Have the logits of a pass, as scoring has them."""
    logits.argmax(-1)
