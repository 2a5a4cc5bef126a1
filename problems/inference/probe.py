"""What a base gives rightly, found out on this very base with prompts of the run's own tasks.

Batches, padding, shared prefixes, caches, mixed candidates and merged weights all assume something
of a base. The probe compares each with the plain pass: one row without padding, mask or cache. What
differs by more than rounding is switched off, in this order:

1. sharing prefixes with padding behind them, then at all,
2. dropping rows that ended,
3. rows of different length, first while decoding, then in any pass,
4. decoding with a cache, where it may be used also with a static one,
5. layers that candidates have in common, then different candidates in one batch,
6. several rows in a pass.

A base that gives other logits for the same tokens, or whose later tokens change earlier logits, is
refused.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.merging import WeightMerger, merged, merged_in_place
from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.inference.batch_sizes import PASS_TOKENS
from evox_evogm.problems.inference.capabilities import Capabilities, changing_context
from evox_evogm.problems.inference.decoding import DecodingBatch
from evox_evogm.problems.inference.logit_differences import (
    difference,
    largest_difference,
    rounded_differently,
    usable,
)
from evox_evogm.problems.inference.prefix_cache import Row, prepare_batches, windows_of
from evox_evogm.problems.inference.probe_rows import STEPS, TAIL, rows_of
from evox_evogm.problems.inference.shared_layers import count_shared_layers
from evox_evogm.problems.inference.static_steps import may_be_static

if TYPE_CHECKING:
    from evox_evogm.problems.inference.language_model import LanguageModel

log = logging.getLogger(__name__)

# How far two ways to compute the same may be apart, in measured roundings (`rounded_differently`).
# SmolLM2-135M: 1.3 at most in float32, 0.8 in bfloat16. A small random model: up to 5, by row. Real
# faults are thousands in float32, and some dozens in half precision.
MOST_ROUNDINGS = 50.0
MOST_ROUNDINGS_IN_HALF = 10.0
LEAST_ROUNDING = 1e-12  # of logits that no rounding moves


def probe_base(
    model: "LanguageModel",
    modules: Mapping[str, StackedModule],
    n_coefficients: int,
    prompts: Sequence[tuple[int, ...]],
    merger: WeightMerger | None = None,
    *,
    kind: "type[Probe] | None" = None,
) -> Capabilities:
    """Find out what may be relied on, and log it.

    :param model: the base with its tokenizer. It stays as it is.
    :param modules: the stacked experts.
    :param n_coefficients: n g.
    :param prompts: the tokens of all prompts of the run.
    :param merger: puts experts into the weights; None if the copy would take too much memory.
    :param kind: the comparisons of this kind of base; by default those of causal ones.
    :raises ValueError: if the base is not causal, or plain passes cannot be repeated.
    """
    with torch.no_grad():
        found = (kind or Probe)(model, modules, n_coefficients, prompts, merger).find()
    if found.notes:
        for note in found.notes:
            log.warning("base: %s", note)
    else:
        log.info("base: batches, caches and merges agree with plain passes")
    return found


class Probe:
    """Comparisons of fast passes with plain ones.

    - `short`, `other`: two rows of the same length, from the shortest prompt.
    - `long`, `fork`: two rows that share all but their last tokens, from the longest prompt.
    - `shorter`: the beginning of the long row.
    - `brief`: the shortest prompt, and what is decoded behind it.
    """

    def __init__(
        self,
        model: "LanguageModel",
        modules: Mapping[str, StackedModule],
        n_coefficients: int,
        prompts: Sequence[tuple[int, ...]],
        merger: WeightMerger | None,
    ):
        """Take the rows from the prompts."""
        self.model = model
        self.modules = modules
        self.n_coefficients = n_coefficients
        self.merger = merger
        context, grows = changing_context(model.model)
        self.able = Capabilities(context=context, grows=grows)
        limits = [*windows_of(model.model), *([] if context is None else [context])]
        self.short, self.other, self.long, self.fork = rows_of(prompts, limits, model.model)
        longest = len(max(prompts, key=len))
        self.limits_beyond = [limit for limit in limits if len(self.long) <= limit < longest]
        # Rows that differ more in length than a pass costs do not share one.
        self.shorter = self.long[: max(len(self.short), len(self.long) - PASS_TOKENS // 2)]
        self.brief = self.short[: len(min(prompts, key=len)) + STEPS - 1]
        self.expected: dict[tuple[int, ...], torch.Tensor] = {}
        self.rounding = 0.0
        half = model.model.dtype.itemsize < 4
        self.most_roundings = MOST_ROUNDINGS_IN_HALF if half else MOST_ROUNDINGS

    def find(self) -> Capabilities:
        """Make all comparisons, the plain passes first."""
        self._make_plain_passes()
        if not all(bool(usable(logits).any()) for logits in self.expected.values()):
            note = "found no finite logits, so nothing could be compared; all passes are plain"
            return self.able.plain().note(note)
        self._note_compiled()
        for limit in self.limits_beyond:
            self.able = self.able.note(
                f"has a window or context of {limit} tokens, which a prompt exceeds; the probe "
                f"compares rows of at most {len(self.long)}"
            )
        self._check_passes()
        self._check_decoding()
        self._check_static_cache()
        self._check_sharing()
        if self.modules:
            self._check_candidates()
        return self.able

    def _note_compiled(self) -> None:
        """Note it if compiled code of the base is not used."""
        if self.model.forward.is_compiled:
            self.able = self.able.note(
                "was compiled in place and runs as it was before, because compiled code ignores "
                "the experts"
            )

    def _make_plain_passes(self) -> None:
        """Compute what everything else is compared with.

        :raises ValueError: if later tokens change earlier logits, or two passes differ.
        """
        for row in (self.short, self.other, self.shorter, self.long, self.brief):
            if row not in self.expected:
                self.expected[row] = self._plain(row, STEPS)
        self.rounding = self._measure_rounding()
        self._check_repeatable()
        # Of the last position that the two rows have in common.
        before = self._plain(self.long, TAIL + 1)[:1]
        fork = self._plain(self.fork, TAIL - 1)
        self.expected[self.fork] = fork[-STEPS:]
        name = type(self.model.model).__name__
        if not self._agree(fork[:1], before):
            raise ValueError(
                f"base: expected a causal language model, found {name}, in which later tokens "
                "change the logits of earlier ones, as in an encoder"
            )

    def _check_repeatable(self) -> None:
        again = self._plain(self.short, STEPS)
        if not self._agree(again, self.expected[self.short]):
            raise ValueError(
                "base: expected the same logits from the same tokens, found that two plain passes "
                f"differ by {difference(again, self.expected[self.short]):.2g}"
            )

    def _plain(self, row: tuple[int, ...], count: int) -> torch.Tensor:
        """The logits `(count, V)` of the last positions of a row, as a plain user computes them."""
        forward = self.model.forward
        given = {
            "input_ids": torch.tensor([row], device=forward.device),
            "use_cache": False,
            "logits_to_keep": count,
        }
        return forward.run_model(given).logits[0, -count:].float()

    def _measure_rounding(self) -> float:
        """How far the logits move if every module's output is rounded in another way.

        Rows differ in this, some by a factor of 20, so it is measured on all that have few tokens
        in common.
        """
        moved = 0.0
        with rounded_differently(self.model.model):
            for row in (self.short, self.other, self.long):
                moved = max(moved, difference(self._plain(row, STEPS), self.expected[row]))
        return moved

    def _agree(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether two ways to compute the same logits `(Q, V)` differ by rounding only."""
        return difference(found, expected) <= self.most_roundings * self.rounding

    def _check_passes(self) -> None:
        """Rows of equal length in one pass, and of different length."""
        equal = [self.short, self.other]
        no_positions = ("positions", "pad_rows", "pad_cached_rows", "share_prefixes")
        alone = ("batch_rows", "mix_candidates", "pad_rows", "pad_cached_rows")
        attempts = [(), no_positions, alone, (*no_positions, *alone)]
        self._take_first(
            "rows of equal length in a pass",
            attempts,
            lambda able: self._pass(equal, able.without("share_prefixes")),
        )
        if self.able.pad_rows:
            different = [self.shorter, self.long]
            self._take_first(
                "rows of different length in a pass",
                [(), ("pad_rows", "pad_cached_rows")],
                lambda able: self._pass(different, able.without("share_prefixes")),
            )

    def _check_decoding(self) -> None:
        """Steps with a cache, of rows of which one ends early."""

        def decode(able: Capabilities) -> float:
            rows = [self.short, self.other, self.long]
            if able.pad_cached_rows:
                rows = [self.shorter, self.long, self.short]
            able = able.without("share_prefixes")
            apart = self._steps(rows, able)
            if len(self.brief) == STEPS:
                # A prompt of one token looks like a step. Some layers then go on with what they
                # kept of the batch before, if it had as many rows.
                self._steps([self.long], able)
                apart = max(apart, self._steps([self.brief], able))
            return apart

        no_cache = ("cache", "drop_rows", "pad_cached_rows", "share_prefixes")
        # Where rows of a cache cannot be selected, prefixes cannot be shared either.
        no_selection = ("drop_rows", "share_prefixes")
        attempts = [
            (),
            no_selection,
            ("pad_cached_rows",),
            (*no_selection, "pad_cached_rows"),
            no_cache,
        ]
        self._take_first("decoding with a cache", attempts, decode)

    def _check_static_cache(self) -> None:
        """Steps with a static cache, with a row that leaves early and without, if any may be."""
        sizes = self.model.batch_sizes
        may_be_used = self.model.device.type == "cuda" or sizes.static_from is not None
        if not may_be_used or not self.able.cache:
            return
        if not (self.able.positions and may_be_static(self.model.forward)):
            self.able = self.able.without("static_cache").note(
                "decodes with growing caches: static ones need masks, layers without windows or "
                "recurrence, and one device"
            )
            return
        rows = [self.shorter, self.long, self.short]
        if not self.able.pad_cached_rows:
            rows = [self.short, self.other]

        def decode(able: Capabilities) -> float:
            static = able.static_cache
            able = able.without("share_prefixes")
            leaving = self._steps(rows, able, static=static)
            return max(leaving, self._steps(rows, able, static=static, first_ends=STEPS))

        self._take_first("decoding with a static cache", [(), ("static_cache",)], decode)
        use = self.model.forward.static_use
        if use.failed is not None or use.lacked_memory:  # so nothing was compared
            self.able = self.able.without("static_cache")

    def _check_sharing(self) -> None:
        """Rows whose common beginning runs once, and steps behind them."""
        if not self.able.share_prefixes:
            return
        rows = [self.long, self.fork]

        def share(able: Capabilities) -> float:
            return max(self._pass(rows, able), self._steps(rows, able))

        attempts = [(), ("pad_after_prefix",), ("share_prefixes",)]
        self._take_first("a shared beginning", attempts, share)

    def _check_candidates(self) -> None:
        """Experts by hooks and in the weights, and two candidates in one batch."""
        pop = self._two_candidates()
        rows = []
        for tokens, candidate in self._rows_of_candidates():
            rows.append(Row(tokens, candidate, 0, STEPS))

        def each_alone() -> list[torch.Tensor]:
            return [self._logits([row], self.able.plain())[0] for row in rows]

        apart = self._check_hooks(pop, each_alone)
        if apart is None:
            return
        apart_from_each_other = ("share_layers", "mix_candidates")
        # A recurrent layer may see the padding, whose embedding is 0 until an expert changes it.
        no_padding = ("pad_rows", "pad_cached_rows")
        attempts = [
            (),
            ("share_layers",),
            apart_from_each_other,
            no_padding,
            (*no_padding, *apart_from_each_other),
        ]

        def mixed(able: Capabilities) -> float:
            # Apart, because a pass of its own costs less than to pad three short rows.
            equal, different = slice(0, 3), slice(1, None, 2)
            found = self._logits(rows[equal], able) + self._logits(rows[different], able)
            return largest_difference(found, apart[equal] + apart[different])

        with self._candidates(pop):
            self._take_first(
                "two candidates in one batch",
                attempts,
                mixed,
            )

    def _two_candidates(self) -> torch.Tensor:
        """The coefficients `(2, n g)` of two candidates."""
        pop = torch.full((2, self.n_coefficients), 0.5)
        pop[0, 1::2] = -0.4
        pop[1, ::2] = -0.3
        return pop

    def _rows_of_candidates(self) -> list[tuple[tuple[int, ...], int]]:
        """The rows that two candidates share, each with its candidate; the first is short."""
        return [(self.short, 0), (self.short, 1), (self.other, 1), (self.long, 1)]

    def _check_hooks(
        self, pop: torch.Tensor, each_alone: Callable[[], list[torch.Tensor]]
    ) -> list[torch.Tensor] | None:
        """Compare experts by hooks with experts in the weights.

        :param pop: a `(2, n g)` tensor, the candidates.
        :param each_alone: gives the logits of each row of `_rows_of_candidates` alone.
        :return: these logits, or None if hooks are switched off.
        """
        with self._candidates(pop):
            try:
                apart = each_alone()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # each model raises its own
                self._switch_off_hooks(f"make the base raise {in_one_line(error)}")
                return None
            # Experts may make a model more sensitive than the base is.
            with rounded_differently(self.model.model):
                moved = largest_difference(each_alone(), apart)
            if math.isfinite(moved):
                self.rounding = max(self.rounding, moved)
        self._check_modes(apart[0], pop[:1])
        return apart if self.able.unmerged else None

    @contextmanager
    def _candidates(self, pop: torch.Tensor) -> Iterator[None]:
        """Inside the block, rows belong to candidates of `pop`; hooks add their experts."""
        base = self.model.model
        with merged(base, self.modules, pop) as population:
            shared_layers = count_shared_layers(base, population.modules)
            with self.model.candidates(population.select, shared_layers):
                yield

    def _check_modes(self, unmerged: torch.Tensor, pop: torch.Tensor) -> None:
        """Compare the two modes.

        :param unmerged: the logits `(STEPS, V)` of the short row with experts added by hooks.
        :param pop: a `(1, n g)` tensor, the candidate.
        """
        base = self.expected[self.short]
        same_as_base = self._agree(unmerged, base) and self._experts_do_something()
        if self.merger is None:
            if torch.equal(unmerged, base) and self._experts_do_something():
                self._refuse_experts("have no effect")
            self._check_parts(unmerged, pop)
            return
        in_weights = self._in_weights(self.merger, pop)
        if self._agree(unmerged, in_weights):
            return
        apart = difference(unmerged, in_weights) / max(self.rounding, LEAST_ROUNDING)
        if self._agree(in_weights, base):
            self.able = self.able.without("merged").note(
                "merged weights change no logits, so all tasks are unmerged"
            )
            return
        reason = "as if there were none" if same_as_base else f"{apart:.0f} roundings away"
        self._switch_off_hooks(f"give logits {reason}")

    def _check_parts(self, unmerged: torch.Tensor, pop: torch.Tensor) -> None:
        """Compare the two modes where a copy of all weights is too large: part by part.

        The other modules have their experts by hooks. So the last part that disagrees is wrong.
        """
        for part in parts_of(self.model.model, self.modules, self.model.max_memory // 2):
            in_weights = self._in_weights(WeightMerger(self.model.model, part), pop)
            if not self._agree(unmerged, in_weights):
                apart = difference(unmerged, in_weights) / max(self.rounding, LEAST_ROUNDING)
                self._refuse_experts(f"give logits {apart:.0f} roundings away")

    def _in_weights(self, merger: WeightMerger, pop: torch.Tensor) -> torch.Tensor:
        """The logits `(STEPS, V)` of the short row with experts in the weights, others by hooks.

        :param pop: a `(1, n g)` tensor, the candidate.
        """
        others = {name: one for name, one in self.modules.items() if name not in merger.modules}
        with merged(self.model.model, others, pop), merged_in_place(merger, pop) as candidates:
            for _ in candidates:
                found = self._plain(self.short, STEPS)
        return found

    def _switch_off_hooks(self, reason: str) -> None:
        """Rely on merged weights only.

        :raises ValueError: if these would take too much memory.
        """
        if self.merger is None:
            self._refuse_experts(reason)
        self.able = self.able.without("unmerged").note(
            f"experts added by hooks {reason}, so all tasks are merged"
        )

    def _refuse_experts(self, found: str) -> None:
        raise ValueError(
            "base: expected experts that act by hooks as in the weights, found that hooks "
            f"{found}, and a copy of the weights takes more than half of max_memory; raise it"
        )

    def _experts_do_something(self) -> bool:
        """Whether any expert has an effect on any module."""
        for module in self.modules.values():
            if bool((module.a != 0).any()) and bool((module.b != 0).any()):
                return True
        return False

    def _take_first(
        self,
        what: str,
        attempts: Sequence[tuple[str, ...]],
        check: Callable[[Capabilities], float],
    ) -> None:
        """Switch off the first of some sets of capabilities without which a comparison agrees.

        :param what: is compared, for the note.
        :param attempts: names of capabilities, from few to many.
        :param check: gives the largest difference from plain passes.
        :raises ValueError: if none agrees.
        """
        reasons: list[str] = []
        for names in attempts:
            able = self.able.without(*names)
            reason = self._reason_against(able, check)
            if reason is None:
                self.able = able
                if reasons:
                    self.able = able.note(f"{what}: {reasons[0]}; off: {', '.join(names)}")
                return
            reasons.append(reason)
        raise ValueError(
            f"base: expected passes that agree with plain ones, found for {what}: {reasons[-1]}"
        )

    def _reason_against(
        self, able: Capabilities, check: Callable[[Capabilities], float]
    ) -> str | None:
        """What speaks against relying on some capabilities, or None."""
        try:
            apart = check(able)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each model raises its own
            return in_one_line(error)
        if apart <= self.most_roundings * self.rounding:
            return None
        return f"logits differ by {apart:.2g}, where rounding moves them by {self.rounding:.2g}"

    def _pass(self, rows: Sequence[tuple[int, ...]], able: Capabilities) -> float:
        """The largest difference of a pass over some rows from plain passes."""
        requests = [Row(tokens, 0, len(tokens) - STEPS, STEPS) for tokens in rows]
        found = self._logits(requests, able)
        return largest_difference(found, [self.expected[tokens] for tokens in rows])

    def _steps(
        self,
        rows: Sequence[tuple[int, ...]],
        able: Capabilities,
        *,
        static: bool = False,
        first_ends: int = 2,
    ) -> float:
        """The largest difference of decoding the last tokens of some rows from plain passes.

        :param static: whether with a static cache.
        :param first_ends: after how many tokens the first row ends.
        """
        static_steps = STEPS - 1 if static else 0
        prompts = []
        for tokens in rows:
            prompt = tokens[: len(tokens) - STEPS + 1]
            prompts.append(Row(prompt, 0, shareable=len(prompt) - 1))
        found: list[list[torch.Tensor]] = [[] for _ in rows]
        for batch in self._batches(prompts, able, STEPS - 1):
            decoding = DecodingBatch(
                batch, self._forward(able), drop_rows=able.drop_rows, static_steps=static_steps
            )
            while decoding.rows:
                logits = decoding.next_logits()  # (R, V)
                step = len(found[decoding.rows[0]])
                running, chosen = [], []
                for index, row in enumerate(decoding.rows):
                    found[row].append(logits[index].float())
                    place = len(prompts[row].tokens) + step
                    chosen.append(rows[row][min(place, len(rows[row]) - 1)])
                    if step + 1 < (first_ends if row == 0 else STEPS):
                        running.append(index)
                if not running:
                    break
                decoding.append(torch.tensor(chosen, device=logits.device), running)
        parts = [torch.stack(logits) for logits in found]
        expected = []
        for tokens, part in zip(rows, parts, strict=True):
            expected.append(self.expected[tokens][: len(part)])
        return largest_difference(parts, expected)

    def _logits(self, rows: Sequence[Row], able: Capabilities) -> list[torch.Tensor]:
        """For each row the logits `(scored, V)` of its last positions, from fast passes."""
        found = [torch.empty(0)] * len(rows)
        for batch in self._batches(rows, able):
            logits = batch.run(self._forward(able)).float()  # (Q, V)
            for row, part in zip(batch.rows, logits.split(batch.scored), strict=True):
                found[row] = part
        return found

    def _batches(self, rows: Sequence[Row], able: Capabilities, max_new_tokens: int = 0):
        return prepare_batches(
            rows,
            self._forward(able),
            self.model.batching,
            max_new_tokens=max_new_tokens,
            capabilities=able,
        )

    def _forward(self, able: Capabilities):
        """The forward pass of some capabilities."""
        forward = copy.copy(self.model.forward)
        forward.give_positions = able.positions
        if not able.share_layers:
            forward.shared_layers = 0
        return forward


def in_one_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    message = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {message}"


def parts_of(
    model: torch.nn.Module, modules: Mapping[str, StackedModule], max_bytes: int
) -> Iterator[dict[str, StackedModule]]:
    """Split modules into parts whose weights take at most `max_bytes`, or are one module's."""
    part: dict[str, StackedModule] = {}
    for name, module in modules.items():
        if part and WeightMerger.bytes_kept(model, [*part, name]) > max_bytes:
            yield part
            part = {}
        part[name] = module
    yield part
