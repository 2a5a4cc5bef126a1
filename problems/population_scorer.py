"""Scores of P merges on tasks: unmerged in shared batches, or put into the weights one by one."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.groups import Groups, group_modules
from evox_evogm.problems.adapters.read_adapter import Expert
from evox_evogm.problems.adapters.stacked_modules import StackedModule, stack_experts
from evox_evogm.problems.adapters.weight_merger import WeightMerger, merged_in_place
from evox_evogm.problems.batch_choice import choose_batches
from evox_evogm.problems.checkpoints.differences import differences_of
from evox_evogm.problems.checkpoints.full_checkpoint import ranks_of_modules
from evox_evogm.problems.checkpoints.what_is_possible import merged_only
from evox_evogm.problems.cost_model import Rates
from evox_evogm.problems.default_device import on_cpu_by_default
from evox_evogm.problems.functions.function_scorer import (
    functions_of,
    score_functions,
    without_functions,
)
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.images.image_probe import probe_images
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.probe import probe_base
from evox_evogm.problems.inference.quantized_base import quantized_as
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.shared_batches import share_batches
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.mode_choice import modes_of_tasks
from evox_evogm.problems.task_scores import TaskScores, zeros_by_task
from evox_evogm.problems.tasks.metrics import score_tasks
from evox_evogm.problems.tasks.requests import cases_or_all, prompts_of
from evox_evogm.problems.tasks.task import Task
from evox_evogm.problems.weight_copy import WeightCopy

if TYPE_CHECKING:
    from evox_evogm.problems.shared_scoring import SharedScoring

log = logging.getLogger(__name__)
# What the probe reads where no task has prompts.
TEXTS = ("The sum of two and three is", "Question: Is seven a colour or a number?\nAnswer:")


class PopulationScorer:
    """Scores populations of merges, every task in the mode that is faster.

    - `"unmerged"`: the merges share the frozen base and scale the channels of the stacked experts,
      in shared batches.
    - `"merged"`: one merge after another goes into the weights, of which a copy is kept.

    :param language_model: the base with its tokenizer.
    :param experts: n adapters that fit it.
    :param groups: of the modules; one by default.
    :param modes: the modes of tasks that are decided already, by task name. All others are chosen
        by a cost model, from rates measured when they are first needed.
    :param max_memory: bytes that scoring may take beside the base and the experts, as estimated.
    :param measure_batches: whether the sizes of batches are measured before the first scores, and
        modes timed that are expected to be about as fast.
    """

    def __init__(
        self,
        language_model: ScoredModel,
        experts: Sequence[Expert],
        *,
        groups: Groups | None = None,
        modes: Mapping[str, str],
        max_memory: int,
        measure_batches: bool = False,
    ):
        self.language_model = language_model
        self.groups = groups or group_modules(ranks_of_modules(experts))
        self.n_coefficients = len(experts) * self.groups.count
        self.stacked = stack_for(language_model, experts, self.groups)
        self.differences = differences_of(experts, self.groups)
        self.modes = dict(modes)
        self.max_memory = max_memory
        self.measure_batches = self.times_modes = measure_batches
        self.rates: Rates | None = None
        self.sharing: SharedScoring | None = None  # set while ranks score together
        self.weight_copy = WeightCopy(language_model, self.stacked, self.differences)
        self._warned_of_copy = False

    def with_experts(self, experts: Sequence[Expert]) -> "PopulationScorer":
        """A scorer of other experts, with the same base and modes.

        :param experts: of no higher ranks in any module, as groups may be channels.
        """
        other = copy.copy(self)
        other.n_coefficients = len(experts) * self.groups.count
        other.stacked = stack_for(self.language_model, experts, self.groups)
        other.differences = differences_of(experts, self.groups)
        other.weight_copy = WeightCopy(self.language_model, other.stacked, other.differences)
        return other

    @property
    def used_coefficients(self) -> torch.Tensor:
        """An `(n g,)` tensor: whether an expert has anything for a coefficient to weigh.

        It may lack a module, or have fewer channels there than another expert.
        """
        used = torch.zeros(self.n_coefficients, dtype=torch.bool)
        for module in self.stacked.values():
            used[module.coefficient.cpu()] = True
        used[self.exact_coefficients] = True
        return used

    @property
    def exact_coefficients(self) -> list[int]:
        """The numbers of the coefficients of whole models, which are not rounded."""
        return [] if self.differences is None else self.differences.coefficients

    def probe(self, tasks: Sequence[Task]) -> Capabilities:
        """Find out what may be relied on with this base and these experts, and rely on that.

        :param tasks: of the run. Their shortest and longest prompts are used.
        :raises ValueError: if the base cannot be used, or not in a mode that is decided already.
        """
        model = self.language_model
        merges = "merged" in self.modes.values() or not self.copy_is_too_large
        merger = WeightMerger(model.model, self.stacked) if merges else None
        with on_cpu_by_default():
            found = self._probe(tasks, merger)
        if self.differences is not None:
            found = merged_only(found)
        if quantized_as(model.model) is not None:
            found = found.without("merged")
        model.rely_on(found)
        impossible = None
        if not found.unmerged:
            impossible = "unmerged"
        elif not found.merged:
            impossible = "merged"
        for name, mode in self.modes.items():
            if mode == impossible:
                reason = found.notes[-1]
                raise ValueError(
                    f"mode: expected one that works on this base, found {mode!r} for task "
                    f"{name!r}: {reason}"
                )
        return found

    def _probe(self, tasks: Sequence[Task], merger: WeightMerger | None) -> Capabilities:
        model, modules, count = self.language_model, self.stacked, self.n_coefficients
        if isinstance(model, ImageModel):
            return probe_images(model, modules, count, tasks, merger)
        prompts: list[tuple[int, ...]] = []
        for task in tasks:
            prompts += prompts_of(task, model, cases_or_all(task, None))
        model = reading_texts(model)
        if not prompts:
            prompts = [model.prompt_tokens(text) for text in TEXTS]
        return probe_base(model, modules, count, prompts, merger)

    @property
    def weight_merger(self) -> WeightMerger:
        """Puts merges into the weights. Made on first use: it copies the weights that change."""
        return self.weight_copy.merger

    def score(self, pop: torch.Tensor, tasks: Sequence[Task]) -> TaskScores:
        """Score merges by task and example, together with other ranks if there are any.

        :param pop: a `(P, n g)` tensor of effective coefficients.
        :param tasks: with different names. Those whose mode is not decided get the faster one for P
            merges, for this call.
        :return: scores and margins, in the order of `tasks`.
        """
        self.choose_batches()
        if self.sharing is not None:
            return self.sharing.score(self, pop, tasks)
        return self.score_here(pop, tasks, self.modes_for(tasks, len(pop)))

    def score_here(
        self, pop: torch.Tensor, tasks: Sequence[Task], modes: Mapping[str, str]
    ) -> TaskScores:
        """Score merges in this process, see `score`.

        :param modes: of all tasks, by name.
        """
        with on_cpu_by_default():
            with_examples = without_functions(tasks)
            unmerged_tasks = tasks_in_mode("unmerged", with_examples, modes)
            merged_tasks = tasks_in_mode("merged", with_examples, modes)
            margins = zeros_by_task(tasks, len(pop))
            failures: dict[int, str] = {}
            functions = functions_of(tasks)
            scores = score_functions(functions, self, pop, modes, margins, failures)
            if unmerged_tasks:
                scores |= self._score_unmerged(pop, unmerged_tasks, margins)
            if merged_tasks:
                scores |= self._score_merged(pop, merged_tasks, margins)
        by_task = {task.name: scores[task.name] for task in tasks}
        return TaskScores(by_task, margins, {}, failures)

    def differentiate(self, pop: torch.Tensor, tasks: Sequence[Task]) -> TaskScores:
        """Score merges, and differentiate their margins by the coefficients, in unmerged mode.

        :param pop: a `(P, n g)` tensor of effective coefficients.
        :param tasks: with different names.
        :return: scores, margins and derivatives, in the order of `tasks`.
        """
        self.choose_batches()
        if self.sharing is not None:
            return self.sharing.score(self, pop, tasks, differentiate=True)
        return self.differentiate_here(pop, tasks)

    def differentiate_here(self, pop: torch.Tensor, tasks: Sequence[Task]) -> TaskScores:
        """Score and differentiate merges in this process, see `differentiate`."""
        model = self.language_model
        with on_cpu_by_default():
            margins = zeros_by_task(tasks, len(pop))
            derivatives = {}
            for task in tasks:
                shape = len(pop), len(task.examples), self.n_coefficients
                derivatives[task.name] = torch.zeros(shape)
            with share_batches(model, self.stacked, pop, own_rows=True):
                scores = score_tasks(tasks, model, len(pop), margins, derivatives)
        by_task = {task.name: scores[task.name] for task in tasks}
        return TaskScores(by_task, margins, derivatives)

    def choose_batches(self) -> None:
        """Measure how large batches are, if that is wanted and not done, and log it."""
        choose_batches(self)

    def modes_for(self, tasks: Sequence[Task], candidates: int) -> dict[str, str]:
        """The mode of each task: the decided one, or the faster one for so many candidates."""
        with on_cpu_by_default():
            return modes_of_tasks(self, tasks, candidates)

    def choose_modes(self, tasks: Sequence[Task], candidates: int) -> None:
        """Choose the mode of every task that has none yet, for good, and log why.

        :param candidates: P, how many are scored together.
        """
        self.choose_batches()
        if self.sharing is None:
            self.modes = self.modes_for(tasks, candidates)
        elif any(task.name not in self.modes for task in tasks):
            # The other ranks might measure, and choose, otherwise.
            chosen = self.sharing.agree(lambda: self.modes_for(tasks, candidates))
            self.modes = chosen
        self._make_room_for_copy()

    def take_modes(self, modes: Mapping[str, str]) -> None:
        """Take over modes that another rank has chosen.

        :param modes: by the name of the task. Those of other tasks stay as they are.
        """
        self.modes.update(modes)
        self._make_room_for_copy()

    def _make_room_for_copy(self) -> None:
        """Have batches leave the memory that the merged mode takes for its copy of the weights."""
        if "merged" in self.modes.values():
            self.language_model.max_memory = self.memory_beside_copy
            self._warn_of_a_large_copy()
        else:
            self.weight_copy.drop()

    @property
    def memory_beside_copy(self) -> int:
        """Bytes that batches may take in merged mode."""
        return max(1, self.max_memory - self.weight_copy.bytes)

    @contextmanager
    def room_for_copy(self) -> Iterator[None]:
        """Inside the block batches leave the memory of the copy of the weights."""
        model = self.language_model
        before = model.max_memory
        model.max_memory = min(before, self.memory_beside_copy)
        try:
            yield
        finally:
            model.max_memory = before

    def _score_unmerged(
        self, pop: torch.Tensor, tasks: Sequence[Task], margins: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        model = self.language_model
        with share_batches(model, self.stacked, pop):
            return score_tasks(tasks, model, len(pop), margins)

    def _score_merged(
        self, pop: torch.Tensor, tasks: Sequence[Task], margins: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        scores = zeros_by_task(tasks, len(pop))
        with merged_in_place(self.weight_merger, pop) as candidates:
            for row, _ in enumerate(candidates):
                row_margins = {name: table[row : row + 1] for name, table in margins.items()}
                row_scores = score_tasks(tasks, self.language_model, 1, row_margins)
                for name, values in row_scores.items():
                    scores[name][row] = values[0]
        return scores

    def _warn_of_a_large_copy(self) -> None:
        """Log once that the copy of the weights leaves little memory to score with."""
        if self._warned_of_copy or not self.copy_is_too_large:
            return
        self._warned_of_copy = True
        log.warning(
            "mode merged copies %.1f GiB of weights, over half of max_memory (%.1f GiB): passes "
            "are small and slow, down to one row; raise max_memory or use mode unmerged",
            self.weight_copy.bytes / 2**30,
            self.max_memory / 2**30,
        )

    @property
    def copy_is_too_large(self) -> bool:
        """Whether the merged mode copies more than half of the memory that scoring may take."""
        return self.weight_copy.bytes > self.max_memory / 2


def tasks_in_mode(mode: str, tasks: Sequence[Task], modes: Mapping[str, str]) -> list[Task]:
    """The tasks that are scored in a mode."""
    return [task for task in tasks if modes[task.name] == mode]


def stack_for(
    model: ScoredModel, experts: Sequence[Expert], groups: Groups
) -> dict[str, StackedModule]:
    """The factors of all experts by module, where the model's weights are and in their dtype."""
    return stack_experts(experts, model.model.dtype, model.device, model.model, groups)
