"""The comparisons of causal language models, see `probe.py`."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from evox_evogm.problems.failures import in_one_line, is_out_of_memory_by_torch
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.comparisons import Comparisons
from evox_evogm.problems.inference.logit_differences import largest_difference
from evox_evogm.problems.inference.probe_passes import logits_of_passes, logits_of_steps
from evox_evogm.problems.inference.probe_rows import STEPS, TAIL
from evox_evogm.problems.inference.prompts import Tokens
from evox_evogm.problems.inference.shared_batches import share_batches
from evox_evogm.problems.inference.shared_prefixes import Row
from evox_evogm.problems.inference.static_steps import may_be_static


class CausalProbe(Comparisons):
    """Comparisons of fast passes with plain ones: one row without padding, mask or cache."""

    def make_plain_passes(self) -> None:
        """Compute what everything else is compared with.

        :raises ValueError: if later tokens change earlier logits, or two passes differ.
        """
        for row in (self.short, self.other, self.shorter, self.long, self.brief):
            if row not in self.expected:
                self.expected[row] = self.plain(row, STEPS)
        self.measure_rounding()
        self.check_repeatable()
        # Of the last position that the two rows have in common.
        before = self.plain(self.long, TAIL + 1)[:1]
        fork = self.plain(self.fork, TAIL - 1)
        self.expected[self.fork] = fork[-STEPS:]
        name = type(self.model.model).__name__
        if not self.tolerance.agree(fork[:1], before):
            raise ValueError(
                f"base: expected a causal language model, found {name}, in which later tokens "
                "change the logits of earlier ones, as in an encoder"
            )

    def plain(self, row: Tokens, count: int) -> torch.Tensor:
        """The logits `(count, V)` of the last positions of a row, as a plain user computes them."""
        forward = copy.copy(self.model.forward)
        forward.fuse_norms = False
        given = {
            "input_ids": torch.tensor([row], device=forward.device),
            "use_cache": False,
            "logits_to_keep": count,
        }
        return forward.run_model(given).logits[0, -count:].float()

    def without_comparison(self) -> Capabilities:
        """Plain passes, where no logits are finite."""
        note = "found no finite logits, so nothing could be compared; all passes are plain"
        return self.able.plain().note(note)

    def compare_base(self) -> None:
        """Compare passes of the base alone, and steps of decoding."""
        for limit in self.limits:
            if len(self.long) <= limit < self.longest:
                self.able = self.able.note(
                    f"has a window or context of {limit} tokens, which a prompt exceeds; the probe "
                    f"compares rows of at most {len(self.long)}"
                )
        self._compare_fused_norms()
        self._compare_passes()
        self._compare_decoding()
        self._compare_static_cache()
        self._compare_sharing()

    def _compare_fused_norms(self) -> None:
        """One row in a plain pass whose RMSNorms are one kernel each, where they may be."""
        if not self.model.forward.find_norms():
            return
        self.able = replace(self.able, fused_norms=True)

        def fuse(able: Capabilities) -> float:
            alone = replace(able.plain(), fused_norms=able.fused_norms)
            return max(self._apart_in_pass([row], alone) for row in (self.short, self.long))

        self._take_first("RMSNorms of one kernel", [()], fuse)

    def _compare_passes(self) -> None:
        """Rows of equal length in one pass, and of different length."""
        equal = [self.short, self.other]
        no_positions = ("positions", "pad_rows", "pad_cached_rows", "share_prefixes")
        alone = ("batch_rows", "mix_candidates", "pad_rows", "pad_cached_rows")
        attempts = [(), no_positions, alone, (*no_positions, *alone)]
        self._take_first(
            "rows of equal length in a pass",
            attempts,
            lambda able: self._apart_in_pass(equal, able.without("share_prefixes")),
        )
        if self.able.pad_rows:
            different = [self.shorter, self.long]
            self._take_first(
                "rows of different length in a pass",
                [(), ("pad_rows", "pad_cached_rows")],
                lambda able: self._apart_in_pass(different, able.without("share_prefixes")),
            )

    def _compare_decoding(self) -> None:
        """Steps with a cache, of rows of which one ends early."""

        def decode(able: Capabilities) -> float:
            rows = [self.short, self.other, self.long]
            if able.pad_cached_rows:
                rows = [self.shorter, self.long, self.short]
            able = able.without("share_prefixes")
            apart = self._apart_in_steps(*self._rows_of_base(rows), able)
            if len(self.brief) == STEPS:
                # A prompt of one token looks like a step. Some layers then go on with what they
                # kept of the batch before, if it had as many rows.
                self._apart_in_steps(*self._rows_of_base([self.long]), able)
                brief = self._apart_in_steps(*self._rows_of_base([self.brief]), able)
                apart = max(apart, brief)
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

    def _static_cache_may_be_used(self) -> bool:
        """Whether steps with a static cache are to be compared."""
        sizes = self.model.batch_sizes
        wanted = self.model.device.type == "cuda" or sizes.static_from is not None
        return wanted and self.able.cache and self.able.static_cache

    def _compare_static_cache(self) -> None:
        """Steps with a static cache, with a row that leaves early and without, if any may be."""
        if not self._static_cache_may_be_used():
            return
        if not (self.able.positions and may_be_static(self.model.forward)):
            self.able = self.able.without("static_cache").note(
                "decodes with growing caches: static ones need masks, layers without windows or "
                "recurrence, and one device"
            )
            return
        tokens = [self.shorter, self.long, self.short]
        if not self.able.pad_cached_rows:
            tokens = [self.short, self.other]
        rows, expected = self._rows_of_base(tokens)
        self._compare_static_steps("decoding with a static cache", rows, expected)

    def _compare_static_steps(
        self, what: str, rows: Sequence[Row], expected: Sequence[torch.Tensor]
    ) -> None:
        """Steps with a static cache, where the first row leaves early and where all stay.

        :param what: is compared, for the note.
        :param expected: for each row its logits in a plain pass.
        """

        def decode(able: Capabilities) -> float:
            static = able.static_cache
            able = able.without("share_prefixes")
            leaving = self._apart_in_steps(rows, expected, able, static=static)
            staying = self._apart_in_steps(rows, expected, able, static=static, first_ends=STEPS)
            return max(leaving, staying)

        self._take_first(what, [(), ("static_cache",)], decode)
        use = self.model.forward.static_use
        if use.failed is not None or use.lacked_memory:  # so growing ones stood in for it
            self.able = self.able.without("static_cache")

    def _compare_sharing(self) -> None:
        """Rows whose common beginning runs once, and steps behind them."""
        if not self.able.share_prefixes:
            return
        rows = [self.long, self.fork]

        def share(able: Capabilities) -> float:
            apart = self._apart_in_pass(rows, able)
            return max(apart, self._apart_in_steps(*self._rows_of_base(rows), able))

        attempts = [(), ("pad_after_prefix",), ("share_prefixes",)]
        self._take_first("a shared beginning", attempts, share)

    def compare_candidates(self) -> None:
        """Compare experts by hooks and in the weights, and two candidates in one batch."""
        pop = self.two_candidates()
        rows = []
        for tokens, candidate in self.rows_of_candidates():
            rows.append(Row(tokens, candidate, 0, STEPS))

        def each_alone() -> list[torch.Tensor]:
            plain = self.able.plain()
            return [logits_of_passes(self.model, [row], plain)[0] for row in rows]

        apart = self.compare_modes(pop, each_alone)
        if apart is None:
            return
        with share_batches(self.model, self.modules, pop):
            self._compare_mixed_passes(rows, apart)
            self._compare_mixed_decoding(rows, apart)

    def _compare_mixed_passes(self, rows: Sequence[Row], apart: Sequence[torch.Tensor]) -> None:
        """Rows of two candidates in one pass.

        :param apart: the logits of each row alone.
        """
        separate_candidates = ("share_layers", "mix_candidates")
        # A recurrent layer may see the padding, whose embedding is 0 until an expert changes it.
        no_padding = ("pad_rows", "pad_cached_rows")
        attempts = [
            (),
            ("share_layers",),
            separate_candidates,
            no_padding,
            (*no_padding, *separate_candidates),
        ]

        def mixed(able: Capabilities) -> float:
            # Apart, because a pass of its own costs less than to pad three short rows.
            equal, different = slice(0, 3), slice(1, None, 2)
            found = logits_of_passes(self.model, rows[equal], able)
            found += logits_of_passes(self.model, rows[different], able)
            return largest_difference(found, [*apart[equal], *apart[different]])

        self._take_first("two candidates in one batch", attempts, mixed)

    def _compare_mixed_decoding(self, rows: Sequence[Row], apart: Sequence[torch.Tensor]) -> None:
        """Steps of two candidates in one batch, of which the first row ends early.

        :param apart: the logits of each row alone.
        """
        if not self.able.cache:
            return
        # Another order, in which the rows that stay are not of the candidates of the first ones.
        order = [1, 0, 2]
        decoded = [rows[place] for place in order]
        expected = [apart[place] for place in order]

        def decode(able: Capabilities) -> float:
            able = able.without("share_prefixes")
            difference = self._apart_in_steps(decoded, expected, able)
            if self.tolerance.allows(difference):
                return difference
            # Steps of recurrent layers may round otherwise than passes, with experts even more.
            alone = []
            for row in decoded:
                alone += logits_of_steps(self.model, [row], able, first_ends=STEPS)
            return self._apart_in_steps(decoded, alone, able)

        no_selection = ("drop_rows", "share_prefixes")
        no_cache = (*no_selection, "cache", "pad_cached_rows")
        separate_candidates = ("share_layers", "mix_candidates")
        attempts = [
            (),
            no_selection,
            separate_candidates,
            (*no_selection, *separate_candidates),
            no_cache,
            (*no_cache, *separate_candidates),
        ]
        self._take_first("decoding of two candidates in one batch", attempts, decode)
        if self._static_cache_may_be_used():
            what = "decoding of two candidates with a static cache"
            self._compare_static_steps(what, decoded, expected)

    def _take_first(
        self,
        what: str,
        attempts: Sequence[tuple[str, ...]],
        check: Callable[[Capabilities], float],
    ) -> None:
        """Switch off the first of some sets of capabilities without which a comparison agrees.

        Fused norms go before anything else.

        :param what: is compared, for the note.
        :param attempts: names of capabilities, from few to many.
        :param check: gives the largest difference from plain passes.
        :raises ValueError: if none agrees.
        """
        reasons: list[str] = []
        if self.able.fused_norms:
            attempts = [(), ("fused_norms",), *attempts[1:]]
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
        except Exception as error:  # each model raises its own
            if is_out_of_memory_by_torch(error):
                raise
            return in_one_line(error)
        if self.tolerance.allows(apart):
            return None
        rounding = self.tolerance.rounding
        return f"logits differ by {apart:.2g}, where rounding moves them by {rounding:.2g}"

    def _rows_of_base(self, rows: Sequence[Tokens]) -> tuple[list[Row], list[torch.Tensor]]:
        """Rows of the base alone, with their logits in plain passes."""
        given = [Row(tokens, 0, len(tokens) - STEPS, STEPS) for tokens in rows]
        return given, [self.expected[tokens] for tokens in rows]

    def _apart_in_pass(self, tokens: Sequence[Tokens], able: Capabilities) -> float:
        """The largest difference of a pass over some rows of the base from plain passes."""
        rows, expected = self._rows_of_base(tokens)
        return largest_difference(logits_of_passes(self.model, rows, able), expected)

    def _apart_in_steps(
        self,
        rows: Sequence[Row],
        expected: Sequence[torch.Tensor],
        able: Capabilities,
        *,
        static: bool = False,
        first_ends: int = 2,
    ) -> float:
        """The largest difference of decoding the last tokens of some rows from plain passes.

        :param expected: for each row its logits in a plain pass.
        :param static: whether with a static cache.
        :param first_ends: how many tokens of the first row are decoded.
        """
        found = logits_of_steps(self.model, rows, able, static=static, first_ends=first_ends)
        decoded = [one[: len(part)] for one, part in zip(expected, found, strict=True)]
        return largest_difference(found, decoded)
