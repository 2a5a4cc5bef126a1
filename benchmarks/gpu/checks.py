"""Is what a device computes right? Scores against the CPU and plain peft, and EvoX's contract."""

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from evox import compile, use_state, vmap
from evox.core import Algorithm, Problem
from evox.problems.numerical import Sphere
from evox.workflows import StdWorkflow

from benchmarks.gpu.random_bases import (
    SHAPES,
    Regime,
    build_config,
    build_model,
    build_tokenizer,
    random_population,
    write_adapters,
)
from benchmarks.gpu.record import Record
from benchmarks.speed.plain_procedures import Peft, generated_texts
from evox_evogm import EvoGM, GradientSearch, Outcomes, SurrogateEvoGM
from evox_evogm.problems import LoRAMergeProblem, Task
from evox_evogm.problems.inference.batch_sizes import BatchSizes

CPU = torch.device("cpu")
SAME = 1e-3  # the largest difference of scores in float32 that count as equal
P, N = 5, 3
STATIC = BatchSizes(rows=64, static_from=1)  # every answer is decoded with a static cache
ALGORITHMS = ("EvoGM", "SurrogateEvoGM", "GradientSearch")
OUTCOMES = 1000
WITH_OUTCOMES = f"SurrogateEvoGM with {OUTCOMES:,} outcomes"


def check_scores(record: Record, device: torch.device) -> None:
    """Score small bases in float32 on the device in both modes, on the CPU, and by plain peft."""
    torch.set_float32_matmul_precision("highest")
    for name in SHAPES:
        if name == "Qwen2.5-0.5B":  # of the architecture of 1.5B
            continue
        config = build_config(name, tiny=True)
        tokenizer = build_tokenizer(config.vocab_size)
        tasks = [
            Regime(6, 12).task("likelihood", config.vocab_size),
            Regime(6, 9, 5).task("generated", config.vocab_size),
        ]
        with tempfile.TemporaryDirectory() as folder:
            _check_base(record, config, tokenizer, tasks, device, Path(folder))


def _check_base(record: Record, config, tokenizer, tasks: list[Task], device, folder: Path) -> None:
    model = build_model(config, torch.float32, CPU, std=0.2)
    folders = write_adapters(model, folder, count=N, rank=4)
    pop = random_population(P, N)
    on_cpu = Peft(copy.deepcopy(model), tokenizer, folders)
    tasks = [with_right_answers(task, on_cpu, pop) for task in tasks]
    reference: dict[str, torch.Tensor] = {}
    found: dict[str, dict[str, torch.Tensor]] = {}
    ways = ((CPU, "unmerged", None), (device, "unmerged", None), (device, "merged", None))
    for where, mode, sizes in (*ways, (device, "unmerged", STATIC)):
        problem = LoRAMergeProblem(
            model.to(where),
            folders,
            tasks,
            tokenizer=tokenizer,
            mode=mode,
            device=where,
            batch_tokens=sizes,
        )
        scores = problem.score_together(pop.to(where))
        if where is CPU and not reference:
            reference = scores
        else:
            found[mode if sizes is None else "static cache"] = scores
    check_reference(reference, tasks)
    # peft changes the model, so it comes last.
    by_peft = Peft(model, tokenizer, folders)(pop, tasks)  # (P, S)
    parts = by_peft.split([len(task.examples) for task in tasks], 1)
    found["plain peft"] = {task.name: part for task, part in zip(tasks, parts, strict=True)}
    for name, scores in found.items():
        difference = 0.0
        for task in tasks:
            apart = (scores[task.name] - reference[task.name]).abs().max()
            difference = max(difference, float(apart))
        record.add(
            "scores",
            base=type(model).__name__,
            compared=f"{name} on {device.type} with the CPU",
            difference=difference,
            ok=difference < SAME,
        )


def with_right_answers(task: Task, by_peft: Peft, pop: torch.Tensor) -> Task:
    """A task whose generated answers can be right: every second asks for what one merge writes.

    :param by_peft: writes it.
    :param pop: the merges `(P, n)`, which are asked for in turn.
    """
    if task.metric != "exact_match":
        return task
    examples = list(task.examples)
    for index in range(0, len(examples), 2):
        with by_peft.candidate(pop[index // 2 % len(pop)].tolist()):
            texts = generated_texts(by_peft.model, by_peft.tokenizer, task, [examples[index]])
        examples[index] = replace(examples[index], target=texts[0])
    return replace(task, examples=tuple(examples))


def check_reference(reference: dict[str, torch.Tensor], tasks: list[Task]) -> None:
    """Refuse scores of generated answers that are all the same, which show no difference.

    :raises ValueError: if they are.
    """
    for task in tasks:
        found = reference[task.name].unique().tolist()
        if task.metric == "exact_match" and found != [0.0, 1.0]:
            raise ValueError(f"{task.name}: expected the scores 0 and 1, found only {found}")


def make_algorithm(name: str, device: torch.device, n: int = N, **settings) -> Algorithm:
    """A search of n coefficients in [-1, 1]."""
    ones = torch.ones(n, device=device)
    if name == "EvoGM":
        return EvoGM(2 * n, -ones, ones, device=device, **settings)
    if name == WITH_OUTCOMES:
        weights = torch.full((OUTCOMES,), 1 / OUTCOMES, device=device)
        settings["outcomes"] = Outcomes(weights, torch.ones_like(weights, dtype=torch.bool))
        name = "SurrogateEvoGM"
    if name == "SurrogateEvoGM":
        return SurrogateEvoGM(3, -ones, ones, device=device, **settings)
    return GradientSearch(ones / n, device=device, **settings)


class WithGradient(Sphere):
    """A sphere with its gradient behind the fitness, as `GradientSearch` wants it."""

    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        return torch.cat([pop.square().sum(1, keepdim=True), 2 * pop], 1)


class Margins(Problem):
    """The share of `OUTCOMES` half spaces that a point is in, with its distances as outcomes."""

    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        normals = torch.randn(pop.shape[1], OUTCOMES, generator=generator, device="cpu")
        margins = pop @ normals.to(pop) - 0.3  # (P, S)
        return torch.cat([(margins > 0).to(pop).mean(1, keepdim=True), margins], 1)


def make_workflow(name: str, device: torch.device, n: int = N, **settings) -> StdWorkflow:
    """A search on a sphere, or on half spaces with outcomes, all of it on a device."""
    problems = {"GradientSearch": WithGradient, WITH_OUTCOMES: Margins}
    problem = problems.get(name, Sphere)()
    return StdWorkflow(make_algorithm(name, device, n, **settings), problem, device=device)


def check_contract(record: Record, device: torch.device, *, compiled: bool) -> None:
    """Run every algorithm eager, under vmap, and compiled, on the device."""
    for name in ALGORITHMS:
        settings = {"epochs": 3, "hidden_dims": (8,)} if name == "EvoGM" else {}
        kinds: dict[str, Callable[[], dict]] = {
            "eager": lambda name=name, settings=settings: _run(name, device, settings),
            "vmap": lambda name=name, settings=settings: _run_vmap(name, device, settings),
        }
        if compiled:
            kinds["compiled"] = lambda name=name, settings=settings: _run(
                name, device, settings, compiled=True
            )
        for kind, run in kinds.items():
            _note_contract(record, name, kind, run, device)


def _note_contract(
    record: Record, name: str, kind: str, run: Callable[[], dict], device: torch.device
) -> None:
    """Add a row: whether the last population is on the device and finite."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = run()
    except Exception as error:  # the other algorithms are still to be tried
        message = " ".join(str(error).split())
        record.add(
            "contract",
            algorithm=name,
            run=kind,
            ok=False,
            error=f"{type(error).__name__}: {message}",
        )
        return
    devices, finite = set(), True
    for value in state.values():
        devices.add(value.device.type)
        finite = finite and bool(value.isfinite().all())
    record.add(
        "contract",
        algorithm=name,
        run=kind,
        ok=finite and devices == {device.type},
        devices=", ".join(sorted(devices)),
    )


def _run(name: str, device: torch.device, settings: dict, *, compiled: bool = False) -> dict:
    """Three steps; the last population and its fitness."""
    torch.manual_seed(3)
    workflow = make_workflow(name, device, **settings)
    workflow.init_step()
    step = compile(workflow.step) if compiled else workflow.step
    for _ in range(2):
        step()
    return workflow.algorithm.record_step()


class RunsSideBySide:
    """Several runs of a workflow in one vmap, after their first step."""

    def __init__(self, workflow: StdWorkflow, count: int):
        parameters, buffers = torch.func.stack_module_state([workflow] * count)
        first = vmap(use_state(workflow.init_step), randomness="different")
        self.state = first({**parameters, **buffers})
        self._step = vmap(use_state(workflow.step), randomness="different")

    def step(self) -> None:
        """Step all runs."""
        self.state = self._step(self.state)


def _run_vmap(name: str, device: torch.device, settings: dict) -> dict:
    """Three steps of three runs side by side; the points, generators or iterate of each."""
    torch.manual_seed(3)
    runs = RunsSideBySide(make_workflow(name, device, **settings), 3)
    for _ in range(2):
        runs.step()
    kept = {}
    for key, value in runs.state.items():
        if key.endswith((".generators", ".iterate")):
            kept[key] = value
        elif key.endswith(".points"):
            kept[key] = value[:, :N]  # the best ones; the places behind may be empty yet
    return kept
