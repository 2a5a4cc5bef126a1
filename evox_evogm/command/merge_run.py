"""One merge run, from settings to a run folder: build the parts, search, score, export.

The run folder holds

- `config.yaml` and `inputs.json`: the settings as used, and digests of what they name;
- `history.jsonl`: one line per evaluation, on disk before it counts;
- `state.safetensors`: from which an interrupted run goes on;
- in the end `result.json`, `report.md` and `adapter/`, the best merge in PEFT format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from evox.workflows import StdWorkflow

from evox_evogm.command.adapter import adapter_fault, export_merge
from evox_evogm.command.experts import expert_folders, tasks_of_experts
from evox_evogm.command.information import (
    describe_flat_tasks,
    explain_no_information,
    flat_tasks,
)
from evox_evogm.command.notes import notes_of_failed_rows, notes_of_inputs
from evox_evogm.command.progress import OnProgress, ProgressCounter
from evox_evogm.command.result import (
    describe_merge,
    read_coefficients,
    read_result,
    write_result,
)
from evox_evogm.command.run_folder import (
    RESULT,
    RunLock,
    check_same_inputs,
    check_same_settings,
    saved_settings,
    write_inputs,
)
from evox_evogm.command.run_inputs import input_digests, made_with
from evox_evogm.command.scores import Candidate, ScoreRow, score_rows
from evox_evogm.command.search_algorithm import (
    OBJECTIVES,
    check_search,
    cost_of_point,
    describe_step,
    make_algorithm,
    population_size,
    recommendation_cost,
    recommended,
)
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.tasks import read_tasks
from evox_evogm.problems.lora_merge import LoRAMergeProblem, box_of
from evox_evogm.problems.racing import Racing
from evox_evogm.problems.tasks.task import Task
from evox_evogm.resume.resumable_search import ResumableSearch


class MergeRun:
    """A search over merges of LoRA experts, with its run folder.

    No other process can have the folder until `close`.

    :param settings: what to do.
    :param folder: the folder that paths in the settings are relative to.
    :param out: the run folder: new, empty, or of an earlier run with these settings, which goes on.
    :raises ValueError: if a setting, a file or an adapter cannot be used, in one sentence.
    """

    def __init__(self, settings: RunSettings, folder: Path, out):
        self.out = Path(out)
        self.folder = folder
        self.lock = RunLock(self.out)
        try:
            self._prepare(settings, folder)
        except BaseException:
            self.close()
            raise

    def _prepare(self, settings: RunSettings, folder: Path) -> None:
        """Build the parts, and check everything that can be known before the first evaluation."""
        self.saved = saved_settings(self.out)
        self.settings = self._settings_as_saved(settings)
        check_search(settings)
        device = resolve_device(settings.device)
        experts = expert_folders(settings.experts, folder)
        pop_size = population_size(settings, len(experts))
        self.tasks = read_tasks(settings.tasks, folder)
        own_tasks = tasks_of_experts(settings.regmean, experts, self.tasks.dev)
        box = box_of(len(experts), regressed=own_tasks is not None)
        # Refuses what is wrong before the model loads.
        make_algorithm(settings, pop_size, box, self.tasks.dev, len(experts))
        self.problem = self._load_problem(folder, experts, own_tasks, device)
        pop_size = population_size(settings, self.problem.n_coefficients)
        self.algorithm = make_algorithm(
            settings, pop_size, self.problem.box, self.tasks.dev, len(experts)
        )
        self.random_state = torch.get_rng_state()
        self.digests = input_digests(self.problem.language_model, self.tasks, experts)
        if self.saved is not None:
            check_same_inputs(self.digests, self.out)
        self.workflow = StdWorkflow(self.algorithm, self.problem, opt_direction="max", device="cpu")
        self.records: list[dict] = []  # the history, without scores by example
        self.counter: ProgressCounter | None = None

    def _settings_as_saved(self, settings: RunSettings) -> RunSettings:
        """The settings with what an earlier process chose for `auto`."""
        if self.saved is None:
            return settings
        check_same_settings(settings, self.saved, self.out)
        return settings.model_copy(update={"dtype": self.saved.dtype, "mode": self.saved.mode})

    def _load_problem(
        self,
        folder: Path,
        experts: Mapping[str, Path],
        own_tasks: Mapping[str, Sequence[Task]] | Literal["weights", "prompts"] | None,
        device: torch.device,
    ) -> LoRAMergeProblem:
        settings = self.settings
        local_base = folder / settings.base
        template = settings.chat_template_file
        return LoRAMergeProblem(
            str(local_base) if local_base.is_dir() else settings.base,
            experts,
            self.tasks.dev,
            objectives=OBJECTIVES[settings.algorithm],
            dtype=None if settings.dtype == "auto" else getattr(torch, settings.dtype),
            device=device,
            batch_tokens=settings.batch_tokens,
            max_memory=int(settings.max_memory * 2**30),
            mode=settings.mode,
            racing=Racing() if settings.racing else None,
            other_tasks=self.tasks.test,
            groups=settings.groups,
            regmean=own_tasks,
            trust_remote_code=settings.trust_remote_code,
            same_base=settings.same_base,
            chat_template=settings.chat_template,
            chat_template_file=None if template is None else folder / template,
            on_evaluations=self._report,
        )

    def close(self) -> None:
        """Let another process have the run folder."""
        self.lock.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def finished(self) -> bool:
        """Whether the run folder holds the result of these settings."""
        return self.saved is not None and (self.out / RESULT).is_file()

    @property
    def budget(self) -> int:
        """The most full evaluations that the search makes, the recommended merge among them."""
        budget = self.settings.budget
        if self.settings.racing:  # a pruned merge is less than one: the number of steps is open
            return budget
        return budget - (budget - self._kept) % self._step_cost

    @property
    def _kept(self) -> int:
        """Evaluations that are kept for the recommended merge."""
        return recommendation_cost(self.algorithm, self.settings.budget)

    @property
    def _step_cost(self) -> int:
        """What a step costs, in full evaluations."""
        return self.algorithm.pop_size * cost_of_point(self.settings.algorithm)

    @property
    def dtype(self) -> str:
        """Of the base model, by its name."""
        return str(self.problem.language_model.model.dtype).removeprefix("torch.")

    @property
    def notes(self) -> list[str]:
        """What was found out about tasks, base and experts, a line each."""
        return notes_of_inputs(self.problem, self.tasks)

    def search(self, on_progress: OnProgress = lambda progress: None) -> torch.Tensor:
        """Run all steps from the settings' seed, or those that an earlier process left.

        :param on_progress: called after every evaluation.
        :return: `(n g,)` effective coefficients: what the algorithm recommends, or for EvoGM those
            with the best mean dev score.
        """
        if self.saved is None:
            self._begin()
        torch.set_rng_state(self.random_state)
        search = ResumableSearch(
            self.workflow,
            self.out,
            describe=lambda step: describe_step(self.algorithm, step),
            journal=self.lock.journal,
        )
        self.records = search.records
        forget_examples(self.records)
        made = search.problem.position
        self.counter = ProgressCounter(self.budget, self.records, made, on_progress)
        while self.counter.done + self._step_cost + self._kept <= self.budget:
            search.run(search.steps + 1)
        # The recommended merge, if it is evaluated, belongs to the last step, in any process.
        search.problem.step = search.steps - 1
        return recommended(self.workflow.algorithm, self.records, evaluate=self._kept > 0)

    def _begin(self) -> None:
        """Choose what the settings leave open, and write down what the run is made of."""
        self.problem.choose_modes(self.algorithm.pop_size)
        chosen = {"dtype": self.dtype, "mode": dict(self.problem.modes)}
        self.settings = self.settings.model_copy(update=chosen)
        made = made_with(self.problem.language_model)
        write_inputs(self.out, self.settings, self.digests, made, self.notes)

    def _report(self, evaluations: list) -> None:
        assert self.counter is not None
        first = self.counter.position
        forget_examples(self.records[first : first + len(evaluations)])
        self.counter.report(evaluations)

    def score_rows(self, best: torch.Tensor) -> list[ScoreRow]:
        """The rows of the final table: base, every expert, average, RegMean, and the best merge.

        :param best: `(n g,)` effective coefficients.
        """
        candidate = Candidate(self.settings.algorithm, best.cpu())
        return score_rows(self.problem, self.tasks, candidate, self.records)

    def finish(self, best: torch.Tensor, rows: Sequence[ScoreRow]) -> dict:
        """Export the best merge, check it with plain peft, and write `result.json` and `report.md`.

        :param best: `(n g,)` effective coefficients.
        :param rows: of the final table.
        :return: what `result.json` holds.
        """
        result = describe_merge(self.problem, best, rows, self.tasks, self.records)
        result["algorithm"] = self.settings.algorithm
        result |= self._judge(rows)
        result["adapter"] = export_merge(self.problem, best, self.out, self.folder)
        result["seed"] = self.settings.seed
        result["dtype"] = self.dtype
        result["base_sha256"] = self.digests["base"]
        result |= made_with(self.problem.language_model)
        write_result(result, self.out, self.folder)
        return result

    def _judge(self, rows: Sequence[ScoreRow]) -> dict:
        """What `result.json` says of how much the scores say, and what else a reader has to know.

        :param rows: of the final table.
        """
        flat = flat_tasks(rows, self.records, self.tasks)
        notes = [*self.notes, *notes_of_failed_rows(rows)]
        if len(flat) < len(self.tasks.dev):
            return {"notes": notes + describe_flat_tasks(flat), "no_information": None}
        found = explain_no_information(flat, self.problem.language_model)
        return {"notes": notes, "no_information": asdict(found)}

    def adapter_fault(self) -> str | None:
        """Why the adapter of this finished run has to be made again, or None."""
        return adapter_fault(self.result(), self.out)

    def result(self) -> dict:
        """What `result.json` of this finished run holds."""
        return read_result(self.out)

    def export_again(self) -> dict:
        """Make the adapter of this finished run again, from its coefficients.

        :return: what `result.json` now holds.
        """
        result = self.result()
        best = read_coefficients(result, self.problem)
        result["adapter"] = export_merge(self.problem, best, self.out, self.folder)
        write_result(result, self.out, self.folder)
        return result


def forget_examples(records: Sequence[dict]) -> None:
    """Drop scores and margins by example, and gradients: the history and the cache have them.

    :param records: of evaluations that are on disk and in the cache of the problem.
    """
    for record in records:
        record.pop("examples", None)
        record.pop("margins", None)
        record.pop("gradient", None)


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; `auto` takes a GPU where there is one.

    :raises ValueError: if torch cannot use it here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected one that torch can use here, found {name!r}: {reason}"
        ) from error
