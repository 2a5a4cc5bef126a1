"""One merge run from settings to a run folder: build the parts, search, score the result on test, export the adapter.

The run folder holds `config.yaml` and `inputs.json` (the settings as used, digests of what they name), `history.jsonl`
(one line per evaluation, on disk before it counts) and `state.safetensors`, from which an interrupted run goes on, and in
the end `result.json`, `report.md` and `adapter/` (the best merge in PEFT format).
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from inspect import signature
from pathlib import Path

import torch
from evox.workflows import StdWorkflow

from evox_evogm.algorithms.evogm import SCREENED_POP_SIZE, EvoGM
from evox_evogm.algorithms.surrogate import Outcomes
from evox_evogm.command.report import ScoreRow, report_markdown
from evox_evogm.command.run_folder import (
    RESULT,
    RunLock,
    check_same_inputs,
    check_same_settings,
    saved_settings,
    sha256,
    write_inputs,
)
from evox_evogm.command.settings import RunSettings, check_names
from evox_evogm.problems.adapters.read_adapter import CONFIG, WEIGHTS
from evox_evogm.problems.inference.base_model import tokenizer_sha256, weights_sha256
from evox_evogm.problems.lora_merge import LoRAMergeProblem, box_of
from evox_evogm.problems.racing import Racing
from evox_evogm.problems.tasks.metrics import outcomes_of, tokenize_task
from evox_evogm.problems.tasks.readers import read_json_lines, read_reasoning_gym, read_swarm_eval
from evox_evogm.problems.tasks.task import Task
from evox_evogm.resume.atomic_write import atomic_write
from evox_evogm.resume.resumable_search import ResumableSearch, plain

SEARCH_SETTINGS = [
    name
    for name, spec in signature(EvoGM).parameters.items()
    if spec.kind is spec.KEYWORD_ONLY
    and name not in ("clamp", "device", "outcomes")  # these follow from the rest
]
TASK_KEYS = [spec.name for spec in fields(Task) if spec.name not in ("name", "version", "examples")]
READERS = ("reasoning_gym", "swarm_eval", "json_lines")
EXACT = 1e-5  # relative difference of weights up to which a reloaded adapter counts as the merge


@dataclass(frozen=True)
class Progress:
    """What is known after an evaluation: full evaluations spent (a merge that is given up spends a share of one), scores
    (higher is better), seconds."""

    done: float
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
        raise ValueError(
            f"tasks: expected a table with one of {', '.join(READERS)}, found {entry!r}"
        )
    entry = dict(entry)
    reader = next(reader for reader in READERS if reader in entry)
    source = str(entry.pop(reader))
    own = {"reasoning_gym": ["seed", "options"], "swarm_eval": [], "json_lines": ["test_file"]}[
        reader
    ]
    check_names(entry, ["dev", "test", "name", *own, *TASK_KEYS], f"task {source!r}")
    sizes = {split: entry.pop(split, None) for split in ("dev", "test")}
    for split, size in sizes.items():
        if (size is not None or reader == "reasoning_gym") and (
            not isinstance(size, int) or size < 1
        ):
            raise ValueError(
                f"task {source!r}: expected {split} to be a number of examples, at least 1, found {size!r}"
            )
    if reader == "reasoning_gym":
        return read_reasoning_gym(source, **sizes, **entry)
    if reader == "json_lines":
        if not isinstance(entry.get("test_file"), str):
            found = repr(entry["test_file"]) if "test_file" in entry else "none"
            raise ValueError(
                f"task {source!r}: expected test_file beside json_lines, found {found}"
            )
        tasks = read_json_lines(folder / source, folder / entry.pop("test_file"), **entry)
    else:
        tasks = read_swarm_eval(folder / source, **entry)
    return tuple(
        task if size is None else task.take(size)
        for task, size in zip(tasks, sizes.values(), strict=True)
    )


def expert_folders(experts, folder: Path) -> dict[str, Path]:
    """Names and folders of the experts named in the settings: one folder of adapters, a list, or a table."""
    if isinstance(experts, str):
        parent = folder / experts
        found = sorted(path.parent for path in parent.glob(f"*/{CONFIG}"))
        if not found:
            found = "none" if parent.is_dir() else "no such folder"
            raise ValueError(
                f"experts: expected adapter folders with {CONFIG} in {parent}, found {found}"
            )
        return {path.name: path for path in found}
    if not experts and isinstance(experts, (list, dict)):
        raise ValueError("experts: expected at least one adapter folder, found none")
    if isinstance(experts, dict):
        named = {str(name): folder / str(path) for name, path in experts.items()}
        if len(named) < len(experts):
            raise ValueError(
                f"experts: expected different names, found some that read the same in {list(experts)}"
            )
        return named
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


def tasks_of_experts(
    regmean, experts: Iterable[str], tasks: Sequence[Task]
) -> dict[str, list[Task]] | None:
    """The tasks that every expert was made for, by the setting `regmean`; None where it is off.

    :raises ValueError: if an expert has no task, or a name is unknown.
    """
    if regmean is None or regmean is False:
        return None
    named = {name: name for name in experts} if regmean is True else regmean
    if not isinstance(named, dict):
        raise ValueError(
            f"regmean: expected true, or a table of experts and their tasks, found {regmean!r}"
        )
    known, found = {task.name: task for task in tasks}, {}
    for expert, names in named.items():
        names = names if isinstance(names, list) else [names]
        unknown = [name for name in names if not isinstance(name, str) or name not in known]
        if unknown or not names:
            raise ValueError(
                f"regmean: expected for expert {expert!r} some of the tasks {', '.join(known)}, found {unknown[:1] or names}; "
                "give a table of experts and their tasks"
            )
        found[str(expert)] = [known[name] for name in names]
    return found


class MergeRun:
    """A search over merges of LoRA experts, with its run folder, which no other process can have until `close`.

    :param settings: what to do.
    :param folder: what paths in the settings are relative to.
    :param out: the run folder: new, empty, or of an earlier run with these settings, which then goes on.
    :param on_progress: called after every evaluation.
    :raises ValueError: if a setting, a file or an adapter cannot be used, in one sentence.
    """

    def __init__(
        self,
        settings: RunSettings,
        folder: Path,
        out,
        on_progress: Callable[[Progress], None] | None = None,
    ):
        self.settings = settings
        self.out = Path(out)
        self.on_progress = on_progress
        self.lock = RunLock(self.out)
        try:
            self._prepare(settings, folder)
        except BaseException:
            self.close()
            raise

    def _prepare(self, settings: RunSettings, folder: Path) -> None:
        """Build the parts, and check everything that can be known before the first evaluation."""
        self.saved = saved_settings(self.out)
        if self.saved is not None:
            check_same_settings(settings, self.saved, self.out)
            settings = replace(settings, dtype=self.saved["dtype"], mode=self.saved["mode"])
            self.settings = settings
        check_names(settings.search, SEARCH_SETTINGS, "search")
        device = resolve_device(settings.device)
        folders = expert_folders(settings.experts, folder)
        n = len(folders)
        screened = settings.search.get("proposal", "screened") == "screened"
        pop_size = settings.pop_size or (SCREENED_POP_SIZE if screened else max(2, 2 * n))
        if settings.budget < pop_size:
            raise ValueError(
                f"budget: expected at least one population, {pop_size} evaluations, found {settings.budget}"
            )
        pairs = [read_task(entry, folder) for entry in settings.tasks]
        self.dev_tasks, self.test_tasks = [dev for dev, _ in pairs], [test for _, test in pairs]
        regmean = tasks_of_experts(settings.regmean, folders, self.dev_tasks)
        torch.manual_seed(settings.seed)
        # The search is small tensors; on the CPU it gives the same points whatever device the model is on.
        cpu = torch.device("cpu")
        search = {"clamp": False, "device": cpu, **settings.search}
        if screened:
            search["outcomes"] = Outcomes(*outcomes_of(self.dev_tasks))
        try:
            self.algorithm = EvoGM(pop_size, *box_of(n, regressed=regmean is not None), **search)
        except ValueError as error:
            raise ValueError(f"search: {error}") from error
        self.random_state = torch.get_rng_state()  # reading models may draw numbers of its own
        base = (
            settings.base if not (folder / settings.base).is_dir() else str(folder / settings.base)
        )
        self.problem = LoRAMergeProblem(
            base,
            folders,
            self.dev_tasks,
            objectives="outcomes" if screened else "mean",
            dtype=None if settings.dtype == "auto" else getattr(torch, settings.dtype),
            device=device,
            batch_tokens=settings.batch_tokens,
            max_memory=int(settings.max_memory * 2**30),
            mode=settings.mode,
            racing=Racing() if screened and settings.racing else None,
            regmean=regmean,
            trust_remote_code=settings.trust_remote_code,
            on_evaluations=self._show,
        )
        for task in self.test_tasks:
            tokenize_task(task, self.problem.language_model)
        self.digests = self._digests(folders)
        if self.saved is not None:
            check_same_inputs(self.digests, self.out)
        self.workflow = StdWorkflow(self.algorithm, self.problem, opt_direction="max", device="cpu")
        self.evaluations: list[dict] = []
        self.shown = self.known = (
            0  # evaluations that were reported, and that an earlier process made
        )
        self.started = time.monotonic()

    def _digests(self, folders: dict[str, Path]) -> dict[str, str]:
        """Of all that the settings refer to: the results of the run depend on it."""
        model = self.problem.language_model
        digests = {
            "base": weights_sha256(model.model),
            "tokenizer": tokenizer_sha256(model.tokenizer),
        }
        for (
            split,
            task,
        ) in self._splits():  # without the version, which names the files of both splits
            digests[f"task {task.name} ({split})"] = sha256(
                repr(replace(task, version="")).encode()
            )
        for name, adapter in folders.items():
            digests[f"expert {name}"] = sha256(
                *((adapter / file).read_bytes() for file in (CONFIG, WEIGHTS))
            )
        return digests

    def _made_with(self) -> dict:
        """What the last digits of the results may depend on."""
        packages = ("evox-evogm", "evox", "torch", "transformers", "peft")
        return {
            "device": str(self.problem.language_model.device),
            "threads": torch.get_num_threads(),
            "versions": {package: version(package) for package in packages},
        }

    def close(self) -> None:
        """Let another process have the run folder."""
        self.lock.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _splits(self) -> list[tuple[str, Task]]:
        return [("dev", task) for task in self.dev_tasks] + [
            ("test", task) for task in self.test_tasks
        ]

    @property
    def finished(self) -> bool:
        """Whether the run folder holds the result of these settings."""
        return self.saved is not None and (self.out / RESULT).is_file()

    @property
    def budget(self) -> int:
        """The most full evaluations that the search makes; a step is only taken if it cannot exceed them."""
        pop_size = self.algorithm.pop_size
        return (
            self.settings.budget
            if self.problem.racing
            else self.settings.budget // pop_size * pop_size
        )

    @property
    def dtype(self) -> str:
        """Of the base model, by its name."""
        return str(self.problem.language_model.model.dtype).removeprefix("torch.")

    def search(self) -> torch.Tensor:
        """Run all steps from the settings' seed, or those that an earlier process left.

        :return: the `(n,)` effective coefficients with the best mean dev score, or what a screened search expects most of.
        """
        if self.saved is None:
            self.problem.choose_modes(self.algorithm.pop_size)
            self.settings = replace(self.settings, dtype=self.dtype, mode=dict(self.problem.modes))
            write_inputs(self.out, self.settings, self.digests, self._made_with())
        torch.set_rng_state(self.random_state)
        search = ResumableSearch(
            self.workflow, self.out, describe=self._describe, journal=self.lock.journal
        )
        self.evaluations = search.records
        self.shown, self.known, self.started = (
            search.problem.position,
            len(self.evaluations),
            time.monotonic(),
        )
        while self._spent(search.problem.position) + self.algorithm.pop_size <= self.budget:
            search.run(search.steps + 1)
        if self.workflow.algorithm.screened:
            return self.workflow.algorithm.answer()
        best = max(
            (row for row in self.evaluations if row["score"] is not None),
            key=lambda row: row["score"],
        )
        return torch.tensor(best["coefficients"])

    def _spent(self, count: int) -> float:
        """Full evaluations that the first `count` of the history come to."""
        return sum(row.get("fraction_evaluated", 1.0) for row in self.evaluations[:count])

    def _describe(self, step: int) -> dict[str, int]:
        round_, iteration = self.algorithm.round_and_iteration(torch.tensor(step))
        return {"round": int(round_), "iteration": int(iteration)}

    def _show(self, block: list) -> None:
        """Report the progress after each candidate of a block that is on disk."""
        first = self.shown
        for row in self.evaluations[first : first + len(block)]:
            self.shown += 1
            if self.on_progress is None:
                continue
            seconds = time.monotonic() - self.started
            scores = [
                row["score"] for row in self.evaluations[: self.shown] if row["score"] is not None
            ]
            best, score = (
                max(scores, default=float("-inf")),
                float("-inf") if row["score"] is None else row["score"],
            )
            done = self._spent(self.shown)
            left = seconds / max(1.0, done - self._spent(self.known)) * (self.budget - done)
            self.on_progress(
                Progress(
                    done, self.budget, row["round"], row["iteration"], score, best, seconds, left
                )
            )

    def _dev_scores(
        self, coefficients: torch.Tensor, problem: LoRAMergeProblem
    ) -> dict[str, float]:
        """Mean dev score per task, from the history where this merge was evaluated already."""
        for row in self.evaluations if problem is self.problem else []:
            complete = row["score"] is not None and "estimate" not in row
            if complete and row["coefficients"] == coefficients.tolist():
                return row["tasks"]
        return {
            name: float(scores.mean()) for name, scores in problem.score_tasks(coefficients).items()
        }

    def score_rows(
        self, best: torch.Tensor, on_row: Callable[[str], None] | None = None
    ) -> list[ScoreRow]:
        """Dev and test scores of the base, every expert, the average of all, the RegMean merge if the search was around it,
        and the best merge.

        :param best: `(n,)` effective coefficients.
        :param on_row: called with the name of each row before it is scored.
        """
        n, given = self.problem.n_experts, self.problem.with_experts_as_given()
        named = [("base", torch.zeros(n), given)]
        named += [
            (expert.name, row, given)
            for expert, row in zip(self.problem.experts, torch.eye(n), strict=True)
        ]
        named += [("average", torch.eye(n).mean(0), given)]
        named += [("RegMean", torch.ones(n), self.problem)] if self.problem.regressed else []
        named += [("EvoGM", best.cpu(), self.problem)]
        rows = []
        for name, coefficients, problem in named:
            if on_row is not None:
                on_row(name)
            dev = self._dev_scores(coefficients, problem)
            test = problem.score_tasks(coefficients, self.test_tasks)
            rows.append(
                ScoreRow(name, dev, {task: float(scores.mean()) for task, scores in test.items()})
            )
        return rows

    def finish(self, best: torch.Tensor, rows: list[ScoreRow]) -> dict:
        """Export the best merge, check it with plain peft, and write `result.json` and `report.md`.

        :return: what `result.json` holds.
        """
        adapter = None
        if bool((best != 0).any()):
            difference = self.problem.export(best, self.out / "adapter")
            if difference > EXACT:
                raise RuntimeError(
                    f"the exported adapter differs from the merge by {difference:.1e} (relative), over {EXACT}"
                )
            adapter = {"folder": "adapter", "largest_relative_difference": difference}
        names = [expert.name for expert in self.problem.experts]
        result = {
            "coefficients": dict(zip(names, best.tolist(), strict=True)),
            "scores": [asdict(row) for row in rows],
            "adapter": adapter,
            "evaluations": len(self.evaluations),
            "full_evaluations": round(self._spent(len(self.evaluations)), 2),
            "seed": self.settings.seed,
            "seconds": round(sum(row["seconds"] for row in self.evaluations), 1),
            "dtype": self.dtype,
            **self._made_with(),
            "tasks": {
                dev.name: {
                    "metric": dev.metric,
                    "mode": self.problem.modes[dev.name],
                    "version": dev.version,
                    "dev": len(dev.examples),
                    "test": len(test.examples),
                }
                for dev, test in zip(self.dev_tasks, self.test_tasks, strict=True)
            },
            "base_sha256": self.digests["base"],
            "regmean": self.problem.regressed,
        }
        atomic_write(self.out / "report.md", report_markdown(result).encode())
        atomic_write(
            self.out / RESULT, (json.dumps(plain(result), indent=2) + "\n").encode()
        )  # last: now the run is finished
        return result
