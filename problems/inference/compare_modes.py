"""Experts that are added by hooks, compared with experts in the weights."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.adapters.weight_merger import WeightMerger, merged_in_place
from evox_evogm.problems.failures import in_one_line, is_out_of_memory_by_torch
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.logit_differences import (
    Tolerance,
    largest_difference,
    rounded_differently,
)
from evox_evogm.problems.inference.shared_batches import share_batches

if TYPE_CHECKING:
    from evox_evogm.problems.inference.language_model import LanguageModel


class ModesComparison:
    """A comparison of the two modes on one row of tokens.

    :param model: the base with its tokenizer.
    :param modules: the stacked experts.
    :param merger: puts experts into the weights; None if the copy would take too much memory.
    :param plain: gives the logits `(Q, V)` of the row in a plain pass.
    :param of_base: these logits without experts.
    :param tolerance: how far logits may be apart. Experts may make a model more sensitive than the
        base is, so rounding is measured with them too.
    """

    def __init__(
        self,
        model: "LanguageModel",
        modules: Mapping[str, StackedModule],
        merger: WeightMerger | None,
        plain: Callable[[], torch.Tensor],
        of_base: torch.Tensor,
        tolerance: Tolerance,
    ):
        self.model = model
        self.modules = modules
        self.merger = merger
        self.plain = plain
        self.of_base = of_base
        self.tolerance = tolerance

    def compare(
        self, able: Capabilities, pop: torch.Tensor, each_alone: Callable[[], list[torch.Tensor]]
    ) -> tuple[Capabilities, list[torch.Tensor]]:
        """Switch off the mode that gives something else.

        :param able: what may be relied on, as far as it is known.
        :param pop: a `(P, n g)` tensor, the candidates.
        :param each_alone: gives the logits of some rows in passes of their own, the first of which
            is the row compared, for the first candidate.
        :return: what may be relied on now, and these logits, none if the hooks make the base fail.
        :raises ValueError: if no mode can be used.
        """
        with share_batches(self.model, self.modules, pop):
            try:
                apart = each_alone()
            except Exception as error:  # each model raises its own
                if is_out_of_memory_by_torch(error):
                    raise
                reason = f"make the base raise {in_one_line(error)}"
                return without_hooks(able, reason, self.merger), []
            with rounded_differently(self.model.model):
                moved = largest_difference(each_alone(), apart)
        if math.isfinite(moved):
            self.tolerance.rounding = max(self.tolerance.rounding, moved)
        by_hooks, first = apart[0], pop[:1]
        if self.merger is None:
            self._require_effect(by_hooks)
            self._compare_parts(by_hooks, first)
            return able, apart
        in_weights = self._in_weights(self.merger, first)
        if self.tolerance.agree(by_hooks, in_weights):
            return able, apart
        if self.tolerance.agree(in_weights, self.of_base):
            note = "merged weights change no logits, so all tasks are unmerged"
            return able.without("merged").note(note), apart
        reason = (
            f"give logits {self.tolerance.in_roundings(by_hooks, in_weights):.0f} roundings away"
        )
        if self.tolerance.agree(by_hooks, self.of_base) and self._experts_do_something():
            reason = "give logits as if there were none"
        return without_hooks(able, reason, self.merger), apart

    def _require_effect(self, by_hooks: torch.Tensor) -> None:
        """Refuse a base on which hooks change nothing.

        :param by_hooks: logits `(Q, V)` with experts.
        """
        if torch.equal(by_hooks, self.of_base) and self._experts_do_something():
            raise no_mode_works("have no effect")

    def _compare_parts(self, by_hooks: torch.Tensor, pop: torch.Tensor) -> None:
        """Compare the two modes where a copy of all weights is too large: part by part.

        The other modules have their experts by hooks. So the last part that disagrees is wrong.
        """
        for part in parts_of(self.model.model, self.modules, self.model.max_memory // 2):
            in_weights = self._in_weights(WeightMerger(self.model.model, part), pop)
            if not self.tolerance.agree(by_hooks, in_weights):
                roundings = self.tolerance.in_roundings(by_hooks, in_weights)
                raise no_mode_works(f"give logits {roundings:.0f} roundings away")

    def _in_weights(self, merger: WeightMerger, pop: torch.Tensor) -> torch.Tensor:
        """The logits `(Q, V)` with experts in the weights, and others by hooks.

        :param merger: of some modules.
        :param pop: a `(1, n g)` tensor, the candidate.
        """
        others = {name: one for name, one in self.modules.items() if name not in merger.modules}
        with merged(self.model.model, others, pop), merged_in_place(merger, pop) as candidates:
            for _ in candidates:
                found = self.plain()
        return found

    def _experts_do_something(self) -> bool:
        """Whether any expert has an effect on any module."""
        for module in self.modules.values():
            if bool((module.a != 0).any()) and bool((module.b != 0).any()):
                return True
        return False


def without_hooks(able: Capabilities, reason: str, merger: WeightMerger | None) -> Capabilities:
    """The same, relying on merged weights only.

    :param reason: what hooks do wrongly.
    :raises ValueError: if merged weights would take too much memory.
    """
    if merger is None:
        raise no_mode_works(reason)
    return able.without("unmerged").note(
        f"experts added by hooks {reason}, so all tasks are merged"
    )


def no_mode_works(found: str) -> ValueError:
    """The error of a base on which hooks do something wrongly, and merges have no memory."""
    return ValueError(
        "base: expected experts that act by hooks as in the weights, found that hooks "
        f"{found}, and a copy of the weights takes more than half of max_memory; raise it"
    )


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
