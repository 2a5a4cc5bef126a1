"""What the comparisons of all bases of texts have in common: plain passes, and what differs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.adapters.weight_merger import WeightMerger
from evox_evogm.problems.inference.batch_sizes import PASS_TOKENS
from evox_evogm.problems.inference.capabilities import Capabilities, changing_context
from evox_evogm.problems.inference.compare_modes import ModesComparison
from evox_evogm.problems.inference.logit_differences import (
    Tolerance,
    difference,
    rounded_differently,
    usable,
)
from evox_evogm.problems.inference.prefix_cache import windows_of
from evox_evogm.problems.inference.probe_rows import STEPS, rows_of
from evox_evogm.problems.inference.prompts import Tokens

if TYPE_CHECKING:
    from evox_evogm.problems.inference.language_model import LanguageModel


class Comparisons(ABC):
    """Comparisons of fast passes with plain ones. What is found stands in `able`.

    - `short`, `other`: two rows of the same length, from the shortest prompt.
    - `long`, `fork`: two rows that share all but their last tokens, from the longest prompt.
    - `shorter`: the beginning of the long row.
    - `brief`: the shortest prompt, and what is decoded behind it.

    :param model: the base with its tokenizer. It stays as it is.
    :param modules: the stacked experts.
    :param n_coefficients: n g.
    :param prompts: the tokens of all prompts of the run.
    :param merger: puts experts into the weights; None if the copy would take too much memory.
    """

    def __init__(
        self,
        model: "LanguageModel",
        modules: Mapping[str, StackedModule],
        n_coefficients: int,
        prompts: Sequence[Tokens],
        merger: WeightMerger | None,
    ):
        self.model = model
        self.modules = modules
        self.n_coefficients = n_coefficients
        self.merger = merger
        context, grows = changing_context(model.model)
        self.able = Capabilities(context=context, grows=grows)
        self.limits = windows_of(model.model)
        if context is not None:
            self.limits.append(context)
        self.short, self.other, self.long, self.fork = rows_of(prompts, self.limits, model.model)
        self.longest = len(max(prompts, key=len))
        # Rows that differ more in length than a pass costs do not share one.
        self.shorter = self.long[: max(len(self.short), len(self.long) - PASS_TOKENS // 2)]
        self.brief = self.short[: len(min(prompts, key=len)) + STEPS - 1]
        self.expected: dict[Tokens, torch.Tensor] = {}  # by row, of plain passes
        self.tolerance = Tolerance(model.model.dtype)

    def find(self) -> Capabilities:
        """Make all comparisons, the plain passes first.

        :raises ValueError: if the base cannot be used.
        """
        self.make_plain_passes()
        if not all(bool(usable(logits).any()) for logits in self.expected.values()):
            return self.without_comparison()
        if self.model.forward.is_compiled:
            self.able = self.able.note(
                "was compiled in place and runs as it was before, because compiled code ignores "
                "the experts"
            )
        self.compare_base()
        if self.modules:
            self.compare_candidates()
        return self.able

    @abstractmethod
    def make_plain_passes(self) -> None:
        """Compute what everything else is compared with."""

    @abstractmethod
    def plain(self, row: Tokens, count: int) -> torch.Tensor:
        """The logits `(count, V)` of a row, as a plain user computes them."""

    @abstractmethod
    def without_comparison(self) -> Capabilities:
        """What may be relied on where no logits are finite."""

    @abstractmethod
    def compare_base(self) -> None:
        """Compare passes of the base alone."""

    @abstractmethod
    def compare_candidates(self) -> None:
        """Compare experts by hooks and in the weights, and two candidates in one batch."""

    def measure_rounding(self) -> None:
        """Measure how far the logits move if every module's output is rounded in another way.

        Rows differ in this, some by a factor of 20, so it is measured on all that have few tokens
        in common.
        """
        moved = 0.0
        with rounded_differently(self.model.model):
            for row in (self.short, self.other, self.long):
                moved = max(moved, difference(self.plain(row, STEPS), self.expected[row]))
        self.tolerance.rounding = moved

    def check_repeatable(self) -> None:
        """Refuse a base whose second plain pass gives other logits."""
        again = self.plain(self.short, STEPS)
        if not self.tolerance.agree(again, self.expected[self.short]):
            raise ValueError(
                "base: expected the same logits from the same tokens, found that two plain passes "
                f"differ by {difference(again, self.expected[self.short]):.2g}"
            )

    def compare_modes(
        self, pop: torch.Tensor, each_alone: Callable[[], list[torch.Tensor]]
    ) -> list[torch.Tensor] | None:
        """Compare experts by hooks with experts in the weights.

        :param pop: a `(2, n g)` tensor, the candidates.
        :param each_alone: gives the logits of each row of `rows_of_candidates` alone.
        :return: these logits, or None if hooks are switched off.
        """
        modes = ModesComparison(
            self.model,
            self.modules,
            self.merger,
            lambda: self.plain(self.short, STEPS),
            self.expected[self.short],
            self.tolerance,
        )
        self.able, apart = modes.compare(self.able, pop, each_alone)
        return apart if self.able.unmerged else None

    def two_candidates(self) -> torch.Tensor:
        """The coefficients `(2, n g)` of two candidates."""
        pop = torch.full((2, self.n_coefficients), 0.5)
        pop[0, 1::2] = -0.4
        pop[1, ::2] = -0.3
        return pop

    def rows_of_candidates(self) -> list[tuple[Tokens, int]]:
        """The rows that two candidates share, each with its candidate; the first is short."""
        return [(self.short, 0), (self.short, 1), (self.other, 1), (self.long, 1)]
