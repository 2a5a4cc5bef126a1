"""One merge run from settings to a run folder: build the parts, search, score the result on test, export the adapter.

The run folder holds `config.yaml` (the settings as used), `history.jsonl` (one line per evaluation, written when it ends),
`result.json`, `report.md` and `adapter/` (the best merge in PEFT format).
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from inspect import signature
from pathlib import Path

import torch
import yaml
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm.evogm import EvoGM
from evox_evogm.problems.base_model import weights_sha256
from evox_evogm.problems.experts import CONFIG
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.readers import read_json_lines, read_reasoning_gym, read_swarm_eval
from evox_evogm.problems.tasks import Task
from evox_evogm.report import ScoreRow, report_markdown
from evox_evogm.settings import RunSettings, check_names

SEARCH_SETTINGS = [name for name, spec in signature(EvoGM).parameters.items() if spec.kind is spec.KEYWORD_ONLY]
TASK_KEYS = [spec.name for spec in fields(Task) if spec.name not in ("name", "version", "examples")]
READERS = ("reasoning_gym", "swarm_eval", "json_lines")
EXACT = 1e-5  # relative difference of weights up to which a reloaded adapter counts as the merge


@dataclass(frozen=True)
class Progress:
    """What is known after an evaluation: counts of evaluations, scores (higher is better), seconds."""

    done: int
    budget: int
    round: int
    iteration: int
    score: float
    best: float
    seconds: float
    seconds_left: float


def read_task(entry, folder: Path) -> tuple[Task, Task]:
    """The dev and the test task of one entry under `tasks` in the settings.

    :raises ValueError: if the entry names no reader, or has an unknown or missing key.
    """
    if not isinstance(entry, dict) or sum(reader in entry for reader in READERS) != 1:
        raise ValueError(f"tasks: expected a table with one of {', '.join(READERS)}, found {entry!r}")
    entry = dict(entry)
    reader = next(reader for reader in READERS if reader in entry)
    source = str(entry.pop(reader))
    own = {"reasoning_gym": ["seed", "options"], "swarm_eval": [], "json_lines": ["test_file"]}[reader]
    check_names(entry, ["dev", "test", "name", *own, *TASK_KEYS], f"task {source!r}")
    sizes = {split: entry.pop(split, None) for split in ("dev", "test")}
    for split, size in sizes.items():
        if (size is not None or reader == "reasoning_gym") and (not isinstance(size, int) or size < 1):
            raise ValueError(f"task {source!r}: expected {split} to be a number of examples, at least 1, found {size!r}")
    if reader == "reasoning_gym":
        return read_reasoning_gym(source, **sizes, **entry)
    if reader == "json_lines":
        if "test_file" not in entry:
            raise ValueError(f"task {source!r}: expected test_file beside json_lines, found none")
        tasks = read_json_lines(folder / source, folder / entry.pop("test_file"), **entry)
    else:
        tasks = read_swarm_eval(folder / source, **entry)
    return tuple(task if size is None else task.take(size) for task, size in zip(tasks, sizes.values(), strict=True))


def expert_folders(experts, folder: Path) -> dict[str, Path]:
    """Names and folders of the experts named in the settings: one folder of adapters, a list, or a table."""
    if isinstance(experts, str):
        parent = folder / experts
        found = sorted(path.parent for path in parent.glob(f"*/{CONFIG}"))
        if not found:
            raise ValueError(f"experts: expected adapter folders with {CONFIG} in {parent}, found none")
        return {path.name: path for path in found}
    if isinstance(experts, dict):
        return {str(name): folder / str(path) for name, path in experts.items()}
    if isinstance(experts, list):
        paths = [folder / str(path) for path in experts]
        named = {path.name: path for path in paths}
        if len(named) < len(paths):
            raise ValueError(
                "experts: expected folders with different names, found some twice; give a table of names and folders"
            )
        return named
    raise ValueError(f"experts: expected a folder, a list or a table, found {experts!r}")


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; `auto` takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: expected one that torch can use here, found {name!r}: {str(error).splitlines()[0]}"
        ) from error


class MergeRun:
    """A search over merges of LoRA experts, with its run folder.

    :param settings: what to do.
    :param folder: what paths in the settings are relative to.
    :param out: the run folder; it must be new or empty.
    :param on_progress: called after every evaluation.
    :raises ValueError: if a setting, a file or an adapter cannot be used, in one sentence.
    """

    def __init__(self, settings: RunSettings, folder: Path, out, on_progress: Callable[[Progress], None] | None = None):
        self.settings = settings
        self.out = Path(out)
        self.on_progress = on_progress
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"out: expected a new or empty folder, found {self.out} with files in it")
        check_names(settings.search, [name for name in SEARCH_SETTINGS if name not in ("clamp", "device")], "search")
        device = resolve_device(settings.device)
        folders = expert_folders(settings.experts, folder)
        n = len(folders)
        pop_size = settings.pop_size or max(2, 2 * n)
        if settings.budget < pop_size:
            raise ValueError(f"budget: expected at least one population, {pop_size} evaluations, found {settings.budget}")
        torch.manual_seed(settings.seed)
        # The search is small tensors; on the CPU it gives the same points whatever device the model is on.
        cpu = torch.device("cpu")
        self.algorithm = EvoGM(pop_size, -torch.ones(n), torch.ones(n), clamp=False, device=cpu, **settings.search)
        self.random_state = torch.get_rng_state()  # reading models and tasks may draw numbers of its own
        pairs = [read_task(entry, folder) for entry in settings.tasks]
        self.dev_tasks, self.test_tasks = [dev for dev, _ in pairs], [test for _, test in pairs]
        base = settings.base if not (folder / settings.base).is_dir() else str(folder / settings.base)
        self.problem = LoRAMergeProblem(
            base,
            folders,
            self.dev_tasks,
            dtype=None if settings.dtype == "auto" else getattr(torch, settings.dtype),
            device=device,
            batch_tokens=settings.batch_tokens,
            max_memory=int(settings.max_memory * 2**30),
            path=settings.path,
            trust_remote_code=settings.trust_remote_code,
            on_evaluation=self._record,
        )
        self.monitor = EvalMonitor(full_sol_history=True)
        self.workflow = StdWorkflow(self.algorithm, self.problem, self.monitor, opt_direction="max", device="cpu")
        self.n_steps = settings.budget // pop_size
        self.evaluations: list[dict] = []
        self.step = 0
        self.started = 0.0

    @property
    def budget(self) -> int:
        """Evaluations that the search makes."""
        return self.n_steps * self.algorithm.pop_size

    @property
    def dtype(self) -> str:
        """Of the base model, by its name."""
        return str(self.problem.language_model.model.dtype).removeprefix("torch.")

    def search(self) -> torch.Tensor:
        """Run all steps, from the settings' seed.

        :return: the `(n,)` effective coefficients with the best mean dev score.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self.problem.choose_paths(self.algorithm.pop_size)
        self.settings = replace(self.settings, dtype=self.dtype, path=self.problem.paths)
        (self.out / "config.yaml").write_text(yaml.safe_dump(asdict(self.settings), sort_keys=False), encoding="utf-8")
        self.started = time.monotonic()
        torch.set_rng_state(self.random_state)
        self.workflow.init_step()
        for step in range(1, self.n_steps):
            self.step = step
            self.workflow.step()
        return self.monitor.get_best_solution()

    def _record(self, coefficients: torch.Tensor, by_task: dict[str, float]) -> None:
        """Append one evaluation to the history, on disk before anything else uses it."""
        round_, iteration = (int(x) for x in self.algorithm.round_and_iteration(torch.tensor(self.step)))
        row = {
            "evaluation": len(self.evaluations),
            "step": self.step,
            "round": round_,
            "iteration": iteration,
            "score": sum(by_task.values()) / len(by_task),
            "tasks": by_task,
            "coefficients": coefficients.tolist(),
        }
        self.evaluations.append(row)
        with open(self.out / "history.jsonl", "a", encoding="utf-8") as history:
            history.write(json.dumps(row) + "\n")
        if self.on_progress is not None:
            done, seconds = len(self.evaluations), time.monotonic() - self.started
            best = max(row["score"] for row in self.evaluations)
            left = seconds / done * (self.budget - done)
            self.on_progress(Progress(done, self.budget, round_, iteration, row["score"], best, seconds, left))

    def _dev_scores(self, coefficients: torch.Tensor) -> dict[str, float]:
        """Mean dev score per task, from the history where this merge was evaluated already."""
        for row in self.evaluations:
            if row["coefficients"] == coefficients.tolist():
                return row["tasks"]
        return {name: float(scores.mean()) for name, scores in self.problem.score_tasks(coefficients).items()}

    def score_rows(self, best: torch.Tensor, on_row: Callable[[str], None] | None = None) -> list[ScoreRow]:
        """Dev and test scores of the base, every expert, the average of all, and the best merge.

        :param best: `(n,)` effective coefficients.
        :param on_row: called with the name of each row before it is scored.
        """
        n = self.problem.n_experts
        named = [("base", torch.zeros(n))]
        named += [(expert.name, row) for expert, row in zip(self.problem.experts, torch.eye(n), strict=True)]
        named += [("average", torch.eye(n).mean(0)), ("EvoGM", best.cpu())]
        rows = []
        for name, coefficients in named:
            if on_row is not None:
                on_row(name)
            test = self.problem.score_tasks(coefficients, self.test_tasks)
            rows.append(ScoreRow(name, self._dev_scores(coefficients), {task: float(s.mean()) for task, s in test.items()}))
        return rows

    def finish(self, best: torch.Tensor, rows: list[ScoreRow]) -> dict:
        """Export the best merge, check it with plain peft, and write `result.json` and `report.md`.

        :return: what `result.json` holds.
        """
        seconds = time.monotonic() - self.started
        base_hash = weights_sha256(self.problem.language_model.model)
        adapter = None
        if bool((best != 0).any()):
            difference = self.problem.export(best, self.out / "adapter")
            if difference > EXACT:
                raise RuntimeError(f"the exported adapter differs from the merge by {difference:.1e} (relative), over {EXACT}")
            adapter = {"folder": "adapter", "largest_relative_difference": difference}
        names = [expert.name for expert in self.problem.experts]
        result = {
            "coefficients": dict(zip(names, best.tolist(), strict=True)),
            "scores": [asdict(row) for row in rows],
            "adapter": adapter,
            "evaluations": len(self.evaluations),
            "seed": self.settings.seed,
            "seconds": round(seconds, 1),
            "device": str(self.problem.language_model.device),
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "tasks": {
                dev.name: {
                    "rule": dev.rule,
                    "path": self.problem.paths[dev.name],
                    "version": dev.version,
                    "dev": len(dev.examples),
                    "test": len(test.examples),
                }
                for dev, test in zip(self.dev_tasks, self.test_tasks, strict=True)
            },
            "base_sha256": base_hash,
            "versions": {package: version(package) for package in ("evox-evogm", "evox", "torch", "transformers", "peft")},
        }
        (self.out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (self.out / "report.md").write_text(report_markdown(result), encoding="utf-8")
        return result
