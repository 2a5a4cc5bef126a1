"""How fast are P merges scored on a device, beside the published procedure and peft?

Ours scores all P merges. The others take one merge after another, so one of them, on the first
batch of examples, gives their time per merge.
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu.checks import WITH_OUTCOMES, RunsSideBySide, make_workflow
from benchmarks.gpu.random_bases import (
    EXPERTS,
    Regime,
    build_config,
    build_model,
    build_tokenizer,
    random_population,
    write_adapters,
)
from benchmarks.gpu.rates import DeviceRates, Work
from benchmarks.gpu.record import Record, free_memory
from benchmarks.speed.plain_procedures import BATCH, Peft, plain_scores
from evox_evogm.problems import LoRAMergeProblem, Task
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.inference.device_clock import synchronize

GIB = 2**30
MODES = ("unmerged", "merged")
CACHES = {"growing cache": None, "static cache": 1}  # from how many new tokens on one is static
CARDS = (24, 16)  # GiB of smaller devices
LONG = 100  # new tokens, for which a growing cache takes most of a minute


class DenseMerge:
    """The published procedure: a dense merge of each candidate, then padded batches in file order.

    Its task vectors are made on the device when they are needed. The published code keeps them in
    the memory of the host, from where they take longer.
    """

    def __init__(self, model: torch.nn.Module, tokenizer, folders: Sequence[Path]):
        self.model = model
        self.tokenizer = tokenizer
        self.experts = [read_expert(folder) for folder in folders]
        self.originals = {}
        for name in self.experts[0].modules:
            self.originals[name] = model.get_submodule(name).weight.detach().clone()

    @torch.no_grad()
    def merge(self, coefficients: torch.Tensor) -> None:
        """Put a candidate into the weights."""
        for name, original in self.originals.items():
            merged = original.clone()
            for coefficient, expert in zip(coefficients.tolist(), self.experts, strict=True):
                factors = expert.modules[name]
                a, b = factors.a.to(merged), factors.b.to(merged)
                merged += coefficient * (factors.scale * b @ a)
            self.model.get_submodule(name).weight.copy_(merged)

    @torch.no_grad()
    def restore(self) -> None:
        """Make the weights those of the base again."""
        for name, original in self.originals.items():
            self.model.get_submodule(name).weight.copy_(original)

    def __call__(self, pop: torch.Tensor, tasks: Sequence[Task]) -> torch.Tensor:
        """Scores `(P, S)` of all examples."""
        scores = []
        for coefficients in pop:
            self.merge(coefficients)
            scores.append(plain_scores(self.model, self.tokenizer, tasks))
        self.restore()
        return torch.stack(scores)


class SpeedCheck:
    """All procedures on one base of random weights.

    :param name: of the base, in `SHAPES`.
    :param regimes: by name.
    :param candidates: P.
    """

    def __init__(
        self,
        record: Record,
        device: torch.device,
        name: str,
        regimes: Mapping[str, Regime],
        rates: DeviceRates,
        *,
        candidates: int,
        tiny: bool,
    ):
        self.record = record
        self.device = device
        self.name = name
        self.regimes = regimes
        self.rates = rates
        self.dtype = torch.bfloat16
        self.config = build_config(name, tiny=tiny)
        self.pop = random_population(candidates, EXPERTS).to(device)

    def run(self) -> None:
        """Measure every procedure in every regime, ours first."""
        warnings.filterwarnings("ignore")  # of peft about adapters that are deleted
        tasks = self._tasks()
        with self._base_and_adapters() as (model, tokenizer, folders):
            self._measure_ours(model, tokenizer, folders, tasks)
            free_memory()  # of our copy of the weights, before there is another
            published = DenseMerge(model, tokenizer, folders)
            self._measure_one_by_one("published", published, tasks)
            del published
            free_memory()
            by_peft = Peft(model, tokenizer, folders)  # changes the model
            self._measure_one_by_one("peft", by_peft, tasks)

    def _tasks(self) -> dict[str, Task]:
        """The task of each regime."""
        tasks = {}
        for regime, asked in self.regimes.items():
            tasks[regime] = asked.task(regime, self.config.vocab_size)
        return tasks

    @contextmanager
    def _base_and_adapters(self) -> Iterator[tuple]:
        """The base on the device, its tokenizer, and the folders of its adapters."""
        model = build_model(self.config, self.dtype, self.device)
        tokenizer = build_tokenizer(self.config.vocab_size)
        with tempfile.TemporaryDirectory() as folder:
            yield model, tokenizer, write_adapters(model, Path(folder))

    def _measure_ours(self, model, tokenizer, folders, tasks: Mapping[str, Task]) -> None:
        start = time.perf_counter()
        problem = self._problem(model, tokenizer, folders, tasks)
        seconds = time.perf_counter() - start
        notes = list(problem.capabilities.notes)  # of what differs from plain passes on this device
        off = problem.capabilities.switched_off
        self._add_row("load", "-", seconds=seconds, switched_off=off, notes=notes)
        start = time.perf_counter()
        problem.choose_modes(len(self.pop))
        seconds = time.perf_counter() - start
        chosen = dict(problem.modes)
        sizes = problem.batch_sizes.as_setting()
        self._add_row("choose modes and batches", "-", seconds=seconds, modes=chosen, sizes=sizes)
        merger = problem.scorer.weight_merger
        seconds = self._seconds(lambda: merger.load(self.pop[0]))
        merger.restore()
        self._add_row("load a merge", "-", ms=1e3 * seconds)
        for regime, task in tasks.items():
            for mode in MODES:
                problem.modes = {task.name: mode}
                # Merged, one candidate after another has the device: one gives the time of each.
                count = len(self.pop) if mode == "unmerged" else 1
                self._measure(mode, problem, regime, task, count, chosen=chosen[task.name] == mode)
            if 1 < self.regimes[regime].new_tokens < LONG:
                self._measure_caches(problem, regime, task)

    def _measure_caches(self, problem: LoRAMergeProblem, regime: str, task: Task) -> None:
        """Add the rows of unmerged decoding with either kind of cache, whichever was chosen."""
        model = problem.language_model
        sizes = model.batch_sizes
        problem.modes = {task.name: "unmerged"}
        for cache, static_from in CACHES.items():
            model.batch_sizes = replace(sizes, static_from=static_from)
            self._measure(cache, problem, regime, task, len(self.pop))
        model.batch_sizes = sizes
        if model.forward.static_use.failed is not None:
            self.record.note(f"static cache of {self.name}", model.forward.static_use.failed)

    def _problem(self, model, tokenizer, folders, tasks, **settings) -> LoRAMergeProblem:
        return LoRAMergeProblem(
            model,
            folders,
            list(tasks.values()),
            tokenizer=tokenizer,
            device=self.device,
            **settings,
        )

    def _measure(
        self, mode: str, problem: LoRAMergeProblem, regime: str, task: Task, count: int, **more
    ) -> None:
        """Add the row of one of our modes.

        :param count: of candidates that are scored.
        """
        pop = self.pop[:count]
        if not self.regimes[regime].new_tokens > 10:  # the kernels of the others are ready by then
            problem.score_together(pop, [task])
        before = start_of_peak(self.device)
        seconds = self._seconds(lambda: problem.score_together(pop, [task]), warm=True)
        work = Work(problem.language_model.model, self.regimes[regime], count)
        self._add_row(
            mode,
            regime,
            ms=1e3 * seconds / count,
            tokens_per_second=work.tokens / seconds,
            roofline=work.seconds(self.rates) / seconds,
            peak_gib=peak_above(before, self.device),
            allowed_gib=problem.max_memory / GIB,
            **more,
        )

    def _measure_one_by_one(
        self, name: str, procedure: Callable, tasks: Mapping[str, Task]
    ) -> None:
        """Add the rows of a procedure that takes one candidate after another.

        It merges once per candidate, whatever the number of examples.
        """
        merging = self._seconds(lambda: procedure(self.pop[:1], []))
        self._add_row(f"{name} merge", "-", ms=1e3 * merging)
        for regime, task in tasks.items():
            first = task.take(min(BATCH, len(task.examples)))
            if not self.regimes[regime].new_tokens > 10:
                procedure(self.pop[:1], [first])
            part = len(first.examples) / len(task.examples)
            before = start_of_peak(self.device)
            seconds = self._seconds(lambda first=first: procedure(self.pop[:1], [first]), warm=True)
            self._add_row(
                name,
                regime,
                ms=1e3 * (merging + max(0.0, seconds - merging) / part),
                peak_gib=peak_above(before, self.device),
                measured_on=f"{len(first.examples)} of {len(task.examples)} examples",
            )

    def emulate_cards(self, sizes: Sequence[int] = CARDS) -> None:
        """Score on devices of less memory: no evaluation may run out of it.

        :param sizes: of their memory in GiB.
        """
        if self.device.type != "cuda":
            return
        with self._base_and_adapters() as (model, tokenizer, folders):
            self._score_with_less_memory(model, tokenizer, folders, self._tasks(), sizes)

    def _score_with_less_memory(
        self, model, tokenizer, folders, tasks: Mapping[str, Task], sizes: Sequence[int]
    ) -> None:
        total = torch.cuda.get_device_properties(self.device).total_memory
        few = {name: tasks[name] for name in ("long", "generated 10")}
        for gib in sizes:
            if gib * GIB >= total:
                continue
            torch.cuda.set_per_process_memory_fraction(gib * GIB / total, self.device)
            try:
                free = gib * GIB - torch.cuda.memory_reserved(self.device)
                same = self._keeps_batches(model, tokenizer, folders, few, int(0.8 * free))
                self._add_row(f"{gib} GiB", "long and generated 10", ok=same)
            except torch.OutOfMemoryError as error:
                self._add_row(f"{gib} GiB", "long and generated 10", ok=False, error=str(error))
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0, self.device)
                free_memory()

    def _keeps_batches(self, model, tokenizer, folders, tasks, max_memory: int) -> bool:
        """Whether a population is scored without halving batches, as a lack of memory does.

        Nothing of the problem is left behind.
        """
        problem = self._problem(model, tokenizer, folders, tasks, max_memory=max_memory)
        problem.choose_modes(len(self.pop))
        before = problem.batch_sizes
        problem.evaluate(self.pop)
        return problem.batch_sizes == before

    def _seconds(self, work: Callable[[], object], *, warm: bool = False) -> float:
        """The seconds of a run, which is not the first of its kind."""
        if not warm:
            work()
        synchronize(self.device)
        start = time.perf_counter()
        work()
        synchronize(self.device)
        return time.perf_counter() - start

    def _add_row(self, procedure: str, regime: str, **values) -> None:
        self.record.add("speed", base=self.name, regime=regime, procedure=procedure, **values)


def start_of_peak(device: torch.device) -> int:
    """Bytes that are in use on a device, from which on its peak is counted."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_above(before: int, device: torch.device) -> float | None:
    """GiB that were in use at most since then, beyond what was; None on a CPU."""
    if device.type != "cuda":
        return None
    return (torch.cuda.max_memory_allocated(device) - before) / GIB


def measure_steps(
    record: Record, device: torch.device, *, n: int = EXPERTS, vmapped_runs: int = 16
) -> None:
    """Time a step of the searches without its evaluations, on the device and on the CPU.

    :param n: coordinates.
    :param vmapped_runs: runs side by side on the device, of the searches that compute much.
    """
    for where in dict.fromkeys((device, torch.device("cpu"))):
        for name in ("SurrogateEvoGM", WITH_OUTCOMES, "EvoGM", "GradientSearch"):
            torch.manual_seed(4)
            workflow = make_workflow(name, where, n)
            workflow.init_step()
            ms = median_ms(workflow.step, where, repeats=3)
            record.add("step", algorithm=name, device=where.type, n=n, runs=1, ms=ms)
    for name in (WITH_OUTCOMES, "EvoGM"):
        torch.manual_seed(4)
        runs = RunsSideBySide(make_workflow(name, device, n), vmapped_runs)
        ms = median_ms(runs.step, device, repeats=1)
        record.add("step", algorithm=name, device=device.type, n=n, runs=vmapped_runs, ms=ms)


def median_ms(step: Callable[[], None], device: torch.device, *, repeats: int) -> float:
    """Milliseconds of a step after a first one, which is not timed."""
    step()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)
