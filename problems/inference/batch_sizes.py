"""How large forward passes are: measured on a device, or constants of a small CPU.

Passes of growing size are timed, over prompts and over steps of decoding apart, until twice the
size hardly answers more tokens a second. What a pass costs beside its tokens is that of a line
through the times.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch

from evox_evogm.problems.failures import is_out_of_memory_by_torch

# Measured for SmolLM2-135M in bfloat16 on two cores: 88 + 40. Small products run at a lower rate,
# and operations have to be called.
PASS_TOKENS = 128
BATCH_TOKENS = 2048
# A size is good whose rate is at most this share below the best: 2,048 tokens where a pass costs
# 128 beside its own.
TOLERANCE = 1 / 16
LEAST_GROWTH = 1 / 32  # of the rate, from one size to twice the size
MOST_SECONDS = 5.0  # that passes of one kind are timed
LONG = 0.5  # seconds of a pass that is not timed again
REPEATS = 2  # of one that is shorter


@dataclass(frozen=True)
class BatchSizes:
    """How large forward passes are, and what they cost beside their tokens.

    :param tokens: the most tokens, padding included, of a pass over prompts.
    :param rows: the most rows that decode together; None for those whose prompts make one pass.
    :param pass_tokens: what a pass over prompts costs beside its tokens, in tokens.
    :param step_tokens: what a step of decoding costs beside its rows, in tokens of prompts.
    :param static_from: from how many new tokens on decoding with a static cache is faster; None if
        it never is.
    """

    tokens: int = BATCH_TOKENS
    rows: int | None = None
    pass_tokens: int = PASS_TOKENS
    step_tokens: int = 0
    static_from: int | None = None

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = 0 if name in ("pass_tokens", "step_tokens") else 1
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is None and name in ("rows", "static_from"):
                continue
            if not whole or value < least:
                expected = f"expected {name} to be a whole number of at least {least}"
                raise ValueError(f"batch_tokens: {expected}, found {value!r}")

    @property
    def is_measured(self) -> bool:
        """Whether decoding has a size of its own."""
        return self.rows is not None

    def with_tokens(self, tokens: int) -> "BatchSizes":
        """The same with other passes over prompts. The rows that decode change alike."""
        if self.rows is None:
            return replace(self, tokens=tokens)
        rows = max(1, self.rows * tokens // self.tokens)
        return replace(self, tokens=tokens, rows=rows)

    def in_words(self) -> str:
        """The sizes, for the log."""
        words = f"{self.tokens} tokens of prompts in a pass"
        if self.rows is not None:
            words += f", {self.rows} rows in a step"
        words += f"; beside these a pass costs {self.pass_tokens} tokens"
        words += f", a step {self.step_tokens}" if self.step_tokens else ""
        if self.static_from is not None:
            words += f"; a static cache is faster from {self.static_from} new tokens on"
        return words

    def as_setting(self) -> int | dict[str, int]:
        """One number where nothing was measured, else a table."""
        if self == BatchSizes(self.tokens):
            return self.tokens
        return {name: value for name, value in asdict(self).items() if value is not None}


def sizes_of(batch_tokens: int | BatchSizes) -> BatchSizes:
    """The sizes of batches of so many tokens."""
    return batch_tokens if isinstance(batch_tokens, BatchSizes) else BatchSizes(batch_tokens)


def is_to_be_measured(batch_tokens: int | BatchSizes | str | None, device: torch.device) -> bool:
    """Whether the sizes of batches are measured: where that is said, and on accelerators."""
    return batch_tokens == "auto" or (batch_tokens is None and device.type != "cpu")


class TimedPass(NamedTuple):
    """One size of passes.

    :param size: tokens of prompts, or rows of a step.
    :param seconds: of a pass.
    """

    size: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens or rows a second."""
        return self.size / self.seconds


class Timing(NamedTuple):
    """Passes of growing size, the smallest first.

    :param passes: that were timed.
    :param ended: whether larger ones would have been no faster, or had no memory.
    """

    passes: list[TimedPass]
    ended: bool

    @property
    def line(self) -> tuple[float, float]:
        """The seconds of each pass and of each token, of the line nearest to the times.

        Relative distances count, so that small passes count as much as large ones.
        """
        if len(self.passes) == 1:
            return 0.0, 1 / self.passes[0].rate
        rows = [[1 / one.seconds, one.size / one.seconds] for one in self.passes]
        left = torch.tensor(rows, dtype=torch.float64, device="cpu")  # (M, 2)
        right = torch.ones(len(rows), 1, dtype=torch.float64, device="cpu")
        per_pass, per_token = torch.linalg.lstsq(left, right).solution[:, 0].tolist()
        fastest = max(one.rate for one in self.passes)
        return max(0.0, per_pass), max(1e-3 / fastest, per_token)

    def best_size(self, sizes: Sequence[int]) -> int:
        """The smallest size that is about as fast as any.

        :param sizes: those that have memory, in ascending order. Where time was over before the
            rate stopped growing, the line says how fast those are that were not timed.
        """
        best = max(one.rate for one in self.passes)
        rates = {one.size: one.rate for one in self.passes}
        if not self.ended:
            per_pass, per_token = self.line
            best = max(best, 1 / per_token)
            for size in sizes:
                rates.setdefault(size, size / (per_pass + per_token * size))
        for size in sorted(rates):
            if rates[size] >= (1 - TOLERANCE) * best:
                return size
        return max(rates)


def time_passes(
    sizes: Sequence[int],
    make: Callable[[int], Callable[[], None]],
    clock: Callable[[], float],
) -> Timing:
    """Time passes of growing size until twice the size is hardly faster, or time is over.

    :param sizes: in ascending order, each about twice the one before.
    :param make: makes the pass of a size.
    :param clock: gives seconds, once the device has done its work.
    """
    passes: list[TimedPass] = []
    start = clock()
    for size in sizes:
        if passes and clock() - start + 2 * passes[-1].seconds > MOST_SECONDS:
            return Timing(passes, ended=False)
        try:
            work = make(size)
            seconds = min(_seconds_of(work, clock))
        except RuntimeError as error:
            if not is_out_of_memory_by_torch(error):
                raise
            break
        passes.append(TimedPass(size, max(seconds, 1e-9)))
        if _has_stopped_growing(passes):
            break
    if not passes:
        raise torch.OutOfMemoryError(f"no pass of {sizes[0]} fits into memory")
    return Timing(passes, ended=True)


def _seconds_of(work: Callable[[], None], clock: Callable[[], float]) -> Iterator[float]:
    """The seconds of a pass, several times where it is short; the first of these does not count."""
    seconds = _time(work, clock)
    if seconds >= LONG:
        yield seconds
        return
    for _ in range(REPEATS):
        yield _time(work, clock)


def _time(work: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def _has_stopped_growing(passes: Sequence[TimedPass]) -> bool:
    """Whether the last two sizes were hardly faster than the ones before them."""
    if len(passes) < 3:
        return False
    before = max(one.rate for one in passes[:-2])
    return max(one.rate for one in passes[-2:]) < (1 + LEAST_GROWTH) * before
