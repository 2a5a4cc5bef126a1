"""Scores of P merges on tasks: unmerged in shared batches, or put into the weights one by one."""

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.groups import Groups, group_modules
from evox_evogm.problems.adapters.merging import WeightMerger, merged, merged_in_place
from evox_evogm.problems.adapters.read_adapter import Expert
from evox_evogm.problems.adapters.stacked_modules import StackedModule, stack_experts
from evox_evogm.problems.checkpoints.checkpoint_merger import CheckpointMerger
from evox_evogm.problems.checkpoints.differences import differences_of
from evox_evogm.problems.checkpoints.full_checkpoint import changed_modules
from evox_evogm.problems.checkpoints.what_is_possible import merged_only
from evox_evogm.problems.close_calls import is_close_call, time_modes
from evox_evogm.problems.cost_model import Rates, measure_rates, predict
from evox_evogm.problems.failures import RankLost
from evox_evogm.problems.functions.fitness_task import FitnessTask
from evox_evogm.problems.functions.function_scorer import (
    functions_of,
    mode_of_function,
    score_functions,
    without_functions,
)
from evox_evogm.problems.images.image_model import ImageModel
from evox_evogm.problems.images.image_modes import mode_by_count
from evox_evogm.problems.images.image_probe import probe_images
from evox_evogm.problems.inference.batch_sizes import BatchSizes
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.encoder_decoder_probe import probe_of
from evox_evogm.problems.inference.kinds_of_base import is_encoder_decoder
from evox_evogm.problems.inference.measure_batches import measure_batch_sizes
from evox_evogm.problems.inference.probe import probe_base
from evox_evogm.problems.inference.quantized_base import quantized_as
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.shared_layers import count_shared_layers
from evox_evogm.problems.inference.texts import reading_texts
from evox_evogm.problems.task_scores import TaskScores, zeros_by_task
from evox_evogm.problems.tasks.metrics import group_tasks, score_tasks
from evox_evogm.problems.tasks.requests import cases_or_all, prompts_of
from evox_evogm.problems.tasks.task import Task

if TYPE_CHECKING:
    from evox_evogm.problems.shared_scoring import SharedScoring

log = logging.getLogger(__name__)
RANKS_DIFFER = "ranks that measured for themselves might choose differently"
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
        self.groups = groups or group_modules(modules_of(experts))
        self.n_coefficients = len(experts) * self.groups.count
        self.stacked = stack_for(language_model, experts, self.groups)
        self.differences = differences_of(experts, self.groups)
        self.modes = dict(modes)
        self.max_memory = max_memory
        self.measure_batches = self.times_modes = measure_batches
        self.rates: Rates | None = None
        self.sharing: SharedScoring | None = None  # set while ranks score together
        self._weight_merger: WeightMerger | None = None
        self._warned_of_copy = False

    def with_experts(self, experts: Sequence[Expert]) -> "PopulationScorer":
        """A scorer of as many other experts of the same ranks, with the same base and modes."""
        other = copy.copy(self)
        other.stacked = stack_for(self.language_model, experts, self.groups)
        other.differences = differences_of(experts, self.groups)
        other._weight_merger = None
        return other

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
        merges = "merged" in self.modes.values() or not self._copy_is_too_large()
        merger = WeightMerger(model.model, self.stacked) if merges else None
        with on_cpu_by_default():
            found = self._probe(tasks, merger)
        if self.differences is not None:
            found = merged_only(found)
        if quantized_as(model.model) is not None:
            found = found.without("merged")
        model.rely_on(found)
        impossible = "unmerged" if not found.unmerged else "merged" if not found.merged else None
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
        return probe_base(model, modules, count, prompts, merger, kind=probe_of(model))

    @property
    def weight_merger(self) -> WeightMerger:
        """Puts merges into the weights. Made on first use: it copies the weights that change."""
        if self._weight_merger is None:
            model = self.language_model.model
            if self.differences is None:
                self._weight_merger = WeightMerger(model, self.stacked)
            else:
                self._weight_merger = CheckpointMerger(model, self.stacked, self.differences)
        return self._weight_merger

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
            with merged(model.model, self.stacked, pop, own_rows=True) as population:
                shared_layers = count_shared_layers(model.model, population.modules)
                with model.candidates(
                    population.select, shared_layers, lambda: population.row_coefficients
                ):
                    scores = score_tasks(tasks, model, len(pop), margins, derivatives)
        return TaskScores({task.name: scores[task.name] for task in tasks}, margins, derivatives)

    @torch.no_grad()
    def choose_batches(self) -> None:
        """Measure how large batches are, if that is wanted and not done, and log it."""
        if not self.measure_batches:
            return
        model = self.language_model
        if self.sharing is None and in_process_group():
            # Measured where the ranks score together, later or not at all.
            log.info("batches: %s; %s", model.batch_sizes.in_words(), RANKS_DIFFER)
            return
        self.measure_batches = False
        start = time.perf_counter()
        try:
            with on_cpu_by_default():
                measure = self._measure_batches
                found = self.sharing.agree(measure) if self.sharing else measure()
                model.batch_sizes = found
        except RankLost:
            raise
        except (RuntimeError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
            sizes = model.batch_sizes.in_words()
            log.warning("batches: they could not be measured (%s): %s", reason, sizes)
            return
        seconds = time.perf_counter() - start
        log.info("batches: %s; measured in %.1f s", model.batch_sizes.in_words(), seconds)

    def _measure_batches(self) -> BatchSizes:
        """Measure with two merges that share batches, or where this does not work with the base."""
        model = reading_texts(self.language_model)
        if not model.capabilities.unmerged:
            return measure_batch_sizes(model)
        pop = torch.full((2, self.n_coefficients), 0.5)
        with (
            merged(model.model, self.stacked, pop) as population,
            model.candidates(population.select),
        ):
            return measure_batch_sizes(model, candidates=len(pop))

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
        if "merged" in self.modes.values():
            self.language_model.max_memory = max(1, self.max_memory - self._bytes_copied())
            self._warn_of_a_large_copy()
        else:
            self._weight_merger = None

    def _score_unmerged(
        self, pop: torch.Tensor, tasks: Sequence[Task], margins: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        model = self.language_model
        with merged(model.model, self.stacked, pop) as population:
            shared_layers = count_shared_layers(model.model, population.modules)
            with model.candidates(population.select, shared_layers):
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

    def modes_for(self, tasks: Sequence[Task], candidates: int) -> dict[str, str]:
        """The mode of each task: the decided one, or the faster one for so many candidates."""
        with on_cpu_by_default():
            return self._modes_for(tasks, candidates)

    def _modes_for(self, tasks: Sequence[Task], candidates: int) -> dict[str, str]:
        modes, undecided = {}, []
        for task in tasks:
            if task.name in self.modes:
                modes[task.name] = self.modes[task.name]
            elif isinstance(task, FitnessTask):
                able, large_copy = self.language_model.capabilities, self._copy_is_too_large()
                modes[task.name] = mode_of_function(task, able, large_copy=large_copy)
                log.info("task %s: %s; it is a function", task.name, modes[task.name])
            else:
                undecided.append(task)
        if not undecided:
            return modes
        if not self.language_model.capabilities.unmerged:
            for task in undecided:
                log.info("task %s: merged; the unmerged mode does not work here", task.name)
                modes[task.name] = "merged"
            return modes
        obstacle = self._obstacle_to_merging()
        if obstacle is not None:
            for task in undecided:
                log.info("task %s: unmerged; %s", task.name, obstacle)
                modes[task.name] = "unmerged"
            return modes
        if isinstance(self.language_model, ImageModel):
            mode = mode_by_count(self.language_model, self.stacked, undecided, candidates)
            return modes | dict.fromkeys([task.name for task in undecided], mode)
        loads_anyway = "merged" in modes.values()
        return modes | self._faster_modes(undecided, candidates, loads_anyway)

    def _faster_modes(
        self, tasks: Sequence[Task], candidates: int, loads_anyway: bool
    ) -> dict[str, str]:
        """The mode of each task that the cost model expects to be faster.

        :param loads_anyway: whether the merges go into the weights for another task.
        """
        assert self.rates is not None, "rates are measured before modes are compared"
        model = reading_texts(self.language_model)
        groups = group_tasks(tasks, model)
        shared_layers = count_shared_layers(model.model, self.stacked)
        seconds = []  # per group, by mode
        for group in groups:
            seconds.append(predict(self.rates, group, model, candidates, shared_layers))
        load_seconds = 0.0 if loads_anyway else candidates * self.rates.load
        if self.times_modes:
            for place, group in enumerate(groups):
                if is_close_call(seconds[place], load_seconds):
                    loading = candidates * self.rates.load
                    seconds[place] = time_modes(self, group, candidates, seconds[place], loading)
        group_modes = faster_modes(seconds, load_seconds)
        modes: dict[str, str] = {}
        for group, mode, expected in zip(groups, group_modes, seconds, strict=True):
            modes |= {task.name: mode for task in group}
            log_choice(group, mode, candidates, expected, load_seconds)
        return modes

    def _obstacle_to_merging(self) -> str | None:
        """Why the merged mode is not considered, or None. In that case the rates are measured."""
        if not self.language_model.capabilities.merged:
            return "the merged mode does not work on this base"
        if self._copy_is_too_large():
            size = f"{self._bytes_copied() / 2**30:.1f} GiB"
            return f"merged weights would take a copy of {size}, over half of max_memory"
        if isinstance(self.language_model, ImageModel):
            return None  # nothing is measured
        if self.sharing is None and in_process_group():
            return RANKS_DIFFER
        if is_encoder_decoder(self.language_model.model):
            return "modes are not compared on encoder-decoders; mode: merged takes the other one"
        if self.rates is not None:
            return None
        try:
            model = reading_texts(self.language_model)
            self.rates = measure_rates(model, self.stacked, self.weight_merger, self.n_coefficients)
        except (RuntimeError, MemoryError, IndexError) as error:
            self._weight_merger = None
            return f"the merged mode could not be measured: {type(error).__name__}: {error}"
        return None

    def _warn_of_a_large_copy(self) -> None:
        """Log once that the copy of the weights leaves little memory to score with."""
        if self._warned_of_copy or not self._copy_is_too_large():
            return
        self._warned_of_copy = True
        log.warning(
            "mode merged copies %.1f GiB of weights, over half of max_memory (%.1f GiB): passes "
            "are small and slow, down to one row; raise max_memory or use mode unmerged",
            self._bytes_copied() / 2**30,
            self.max_memory / 2**30,
        )

    def _copy_is_too_large(self) -> bool:
        """Whether the merged mode copies more than half of the memory that scoring may take."""
        return self._bytes_copied() > self.max_memory / 2

    def _bytes_copied(self) -> int:
        """The size of the weights that the merged mode copies."""
        model, modules = self.language_model.model, list(self.stacked)
        if self.differences is not None:
            modules = self.differences.without(model, modules)
        return WeightMerger.bytes_kept(model, modules)


def tasks_in_mode(mode: str, tasks: Sequence[Task], modes: Mapping[str, str]) -> list[Task]:
    """The tasks that are scored in a mode."""
    return [task for task in tasks if modes[task.name] == mode]


def faster_modes(seconds: Sequence[Mapping[str, float]], load_seconds: float) -> list[str]:
    """The mode of each group of tasks.

    Merges go into the weights once for all groups, so the time that this takes has to be saved over
    all of them.

    :param seconds: per group the expected seconds by mode, without loading.
    :param load_seconds: the time to put all candidates into the weights.
    """
    saved = sum(max(0.0, expected["unmerged"] - expected["merged"]) for expected in seconds)
    modes = []
    for expected in seconds:
        merge = saved > load_seconds and expected["merged"] < expected["unmerged"]
        modes.append("merged" if merge else "unmerged")
    return modes


def log_choice(
    group: Sequence[Task],
    mode: str,
    candidates: int,
    expected: Mapping[str, float],
    load_seconds: float,
) -> None:
    """Log the mode of tasks that share batches, and the expected seconds that decided it."""
    scored = "1 candidate" if candidates == 1 else f"{candidates} candidates"
    scored += f" of {len(group)} tasks that share batches" if len(group) > 1 else ""
    for task in group:
        log.info(
            "task %s: %s; expected for %s: unmerged "
            "%.2f s, merged %.2f s and %.3f s, once for all tasks, to change the weights",
            task.name,
            mode,
            scored,
            expected["unmerged"],
            expected["merged"],
            load_seconds,
        )


def stack_for(
    model: ScoredModel, experts: Sequence[Expert], groups: Groups
) -> dict[str, StackedModule]:
    """The factors of all experts by module, where the model's weights are and in their dtype."""
    return stack_experts(experts, model.model.dtype, model.device, model.model, groups)


def modules_of(experts: Sequence[Expert]) -> set[str]:
    """The names of all modules that some expert changes."""
    return {name for expert in experts for name in changed_modules(expert)}


def in_process_group() -> bool:
    """Whether this process may be one of several ranks."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def on_cpu_by_default() -> AbstractContextManager:
    """Inside the block tensors go to the CPU unless a device is named, whatever the default is."""
    if torch.get_default_device().type == "cpu":
        return nullcontext()
    return torch.device("cpu")
