"""One merge run, from settings to a run folder: build the parts, search, score, export.

The run folder holds

- `config.yaml` and `inputs.json`: the settings as used, and digests of what they name;
- `history.jsonl`: one line per evaluation, on disk before it counts;
- `state.safetensors`: from which an interrupted run goes on;
- in the end `scores_by_example.json`, `report_data.json`, `result.json`, `report.md`, `adapter/`,
  the best merge in PEFT format, and `report.html` with its `figures/`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from evox.workflows import StdWorkflow

from evox_evogm.command.batch_settings import chosen_batches
from evox_evogm.command.best_candidates import best_candidates
from evox_evogm.command.chosen_settings import chosen
from evox_evogm.command.confirm import confirm
from evox_evogm.command.constraint_settings import objective_of_settings, objectives_of
from evox_evogm.command.earlier_rows import earlier_rows
from evox_evogm.command.earlier_run import (
    ends_elsewhere,
    is_chosen_as_wanted,
    with_saved_choices,
)
from evox_evogm.command.experts import expert_folders, tasks_of_experts
from evox_evogm.command.finished_run import finish_run
from evox_evogm.command.further_examples import notes_of_further, read_further
from evox_evogm.command.kept_overrides import keep_overrides
from evox_evogm.command.licences import check_licences, licences_of
from evox_evogm.command.load_problem import load_problem, resolve_device
from evox_evogm.command.minibatch_settings import count_of, with_minibatches
from evox_evogm.command.notes import notes_of_inputs
from evox_evogm.command.result import read_result
from evox_evogm.command.run_files import REGMEAN
from evox_evogm.command.run_folder import (
    ENDS,
    RESULT,
    RunLock,
    change_budget,
    check_marked,
    check_same_inputs,
    saved_settings,
    write_inputs,
)
from evox_evogm.command.run_inputs import input_digests, made_with
from evox_evogm.command.scores import Candidate, ScoreRow, score_rows
from evox_evogm.command.search_algorithm import (
    check_search,
    make_algorithm,
    population_size,
    recommended,
)
from evox_evogm.command.search_limit import SearchLimit
from evox_evogm.command.search_loop import SearchLoop
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.sources import base_of_settings, commits_of, saved_commits
from evox_evogm.command.tasks import read_tasks, with_sizes
from evox_evogm.command.trial import check_trial, make_trial, saved_trial, score_trained
from evox_evogm.command.trial_remarks import note_of_many_examples
from evox_evogm.monitoring.progress import OnProgress, full_evaluations, searched
from evox_evogm.problems.box import box_of
from evox_evogm.problems.lora_merge import LoRAMergeProblem
from evox_evogm.problems.racing import Racing
from evox_evogm.problems.tasks.task import Task
from evox_evogm.resume.resumable_search import saved_seconds


class MergeRun:
    """A search over merges of LoRA experts, with its run folder.

    No other process can have the folder until `close`.

    :param settings: what to do.
    :param folder: the folder that paths in the settings are relative to.
    :param out: the run folder: new, empty, or of an earlier run with these settings, which goes on.
    :param overrides: the words of the command line that are in the settings, which the folder is
        to keep; None leaves those that it has.
    :raises ValueError: if a setting, a file or an adapter cannot be used, in one sentence.
    """

    def __init__(
        self, settings: RunSettings, folder: Path, out, overrides: Sequence[str] | None = None
    ):
        self.out = Path(out)
        self.overrides = overrides
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
        settings = self.settings
        check_search(settings)
        resolve_device(settings.device)  # refuses one that is not here, before anything is read
        commits = saved_commits(self.out)
        experts = expert_folders(settings.experts, folder, commits)
        n_experts = len(experts) * (2 if settings.keep_experts else 1)
        base = base_of_settings(settings, folder, commits)
        self.tasks = read_tasks(settings.tasks, folder, base, commits)
        self.settings = settings = with_minibatches(settings, self.tasks)
        pop_size = population_size(settings, n_experts)
        self.confirmed: dict | None = None  # what `confirm` has found
        self.further: list[Task] = []  # with further dev examples, for `confirm`
        is_open = self._goes_further or not is_chosen_as_wanted(settings, self.out)
        if settings.confirm and is_open:
            count = settings.confirm_examples
            self.further = read_further(settings.tasks, self.tasks, folder, count, base)
        self.objective = objective_of_settings(settings, self.tasks.dev)
        own_tasks = tasks_of_experts(settings.regmean, experts, self.tasks.dev)
        box = box_of(
            n_experts,
            regressed=own_tasks is not None,
            kept=len(experts) if settings.keep_experts else 0,
        )
        # Refuses what is wrong before the model loads.
        if settings.trial:
            check_trial(self.tasks.dev)
        make_algorithm(settings, pop_size, box, self.tasks.dev, n_experts)
        self.problem = self._load_problem(folder, base, experts, own_tasks)
        self.commits = commits_of(settings, folder, experts, self.problem, self.tasks.dev)
        check_licences(licences_of(self.problem), strict=settings.strict_licences)
        self.tasks = with_sizes(self.tasks, self.problem)
        pop_size = population_size(settings, self.problem.n_coefficients)
        self.algorithm = make_algorithm(
            settings,
            pop_size,
            self.problem.box,
            self.tasks.dev,
            n_experts,
            self.objective,
            self.problem.start if settings.keep_experts else None,
        )
        self.limit = SearchLimit(settings, self.algorithm)
        self.random_state = torch.get_rng_state()
        self.digests = input_digests(self.problem.language_model, self.tasks, experts)
        if self.saved is not None:
            check_same_inputs(self.digests, self.out)
        self.workflow = StdWorkflow(
            self.algorithm, self.problem, opt_direction=self.directions, device="cpu"
        )
        self.loop = SearchLoop(self.workflow, self.algorithm, self.problem, self.limit)
        self.problem.on_evaluations = self.loop.report
        if self.saved is not None and self.overrides is not None:
            # What would have let a finished run go on, and did not, changes nothing.
            keep_overrides(self.out, self.overrides, but=ENDS if self.finished else ())

    def _settings_as_saved(self, settings: RunSettings) -> RunSettings:
        """The settings with what an earlier process chose for `auto`."""
        if self.saved is None:
            return settings
        return with_saved_choices(settings, self.saved, self.lock.journal.records, self.out)

    def _load_problem(
        self,
        folder: Path,
        base: str,
        experts: Mapping[str, Path],
        own_tasks: Mapping[str, Sequence[Task]] | Literal["weights", "prompts"] | None,
    ) -> LoRAMergeProblem:
        settings = self.settings
        return load_problem(
            settings,
            folder,
            base,
            experts,
            self.tasks,
            objectives=objectives_of(settings),
            objective=self.objective,
            racing=Racing() if settings.racing else None,
            groups=settings.groups,
            regmean=own_tasks,
            regmean_file=self.out / REGMEAN,
            keep_experts=settings.keep_experts,
            minibatches=count_of(settings),
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
        """Whether the run folder holds the result of these settings.

        With a larger budget than that of the result it does not, if another step has room and the
        search had not converged.
        """
        if self.saved is None or not (self.out / RESULT).is_file():
            return False
        if not is_chosen_as_wanted(self.settings, self.out):
            return False
        if not self._goes_further:
            return True
        if self.settings.stop == self.saved.stop and self.result()["stopped"]:
            return True
        records = self.lock.journal.records
        done = full_evaluations(searched(records))
        return not self.limit.has_room(done, saved_seconds(self.out))

    @property
    def _goes_further(self) -> bool:
        """Whether the folder holds a run, and these settings let its search end elsewhere."""
        return self.saved is not None and ends_elsewhere(self.settings, self.saved)

    @property
    def records(self) -> list[dict]:
        """The history, a record per evaluation, without numbers by example."""
        return self.loop.records

    @property
    def stopped(self) -> bool:
        """Whether the search ended before its budget."""
        return self.loop.stopped

    @property
    def directions(self) -> str | list[str]:
        """What the workflow makes large: a number, or one for each task."""
        return ["max"] * len(self.tasks.dev) if self.settings.objective == "pareto" else "max"

    @property
    def box(self) -> torch.Tensor | None:
        """The box of the search, a `(2, n g)` tensor, which may have grown; None if it has none."""
        return getattr(self.workflow.algorithm, "box", None)

    @property
    def dtype(self) -> str:
        """Of the base model, by its name."""
        return str(self.problem.language_model.model.dtype).removeprefix("torch.")

    @property
    def notes(self) -> list[str]:
        """What was found out about tasks, base and experts, a line each."""
        notes = notes_of_inputs(self.problem, self.tasks)
        if self.further:
            count = self.settings.confirm_examples
            notes += notes_of_further(self.further, self.tasks, count)
        return notes if self.settings.trial else notes + note_of_many_examples(self.tasks.dev)

    def try_training(self) -> dict | None:
        """Make the trial of the settings, or read the one that an earlier process made.

        :return: what `trial.json` holds; None if the settings want no trial.
        """
        settings = self.settings.trial_settings
        if settings is None:
            return None
        if self.saved is None:
            self._begin()
        trial = saved_trial(self.out)
        if trial is None:
            trial = make_trial(self.problem, settings, self.settings.seed, self.out)
        return trial

    def search(self, on_progress: OnProgress = lambda progress: None) -> torch.Tensor:
        """Run all steps from the settings' seed, or those that an earlier process left.

        :param on_progress: called after every evaluation.
        :return: `(n g,)` effective coefficients: what the algorithm recommends, or for EvoGM those
            with the best mean dev score.
        """
        if self.saved is None:
            self._begin()
        self.try_training()
        torch.set_rng_state(self.random_state)
        self.loop.resume(self.out, self.lock.journal)
        if self.saved is not None and self._goes_further:
            check_marked(self.records[self.loop.position :], self.out)
            change_budget(self.out, self.saved, self.settings)
        self.loop.run(self.settings, on_progress)
        # Outside of steps: its evaluation is marked, and a larger budget passes over it.
        return recommended(
            self.workflow.algorithm,
            self.records,
            evaluate=self.limit.kept > 0,
            objective=self.problem.objective,
        )

    def to_confirm(self, best: torch.Tensor) -> torch.Tensor:
        """The merges that are scored on further dev examples, a `(k, n g)` tensor.

        :param best: `(n g,)` effective coefficients, what the algorithm recommends; it comes first.
        """
        count = self.settings.confirm or 0
        return best_candidates(self.workflow.algorithm, self.problem, self.records, best, count)

    def confirm(self, candidates: torch.Tensor) -> torch.Tensor:
        """Score the best merges on further dev examples, and choose one.

        :param candidates: what `to_confirm` gave.
        :return: `(n g,)` coefficients of the best over all examples; `confirmed` says more.
        """
        self.confirmed = confirm(self, candidates, self.further)
        return torch.tensor(self.confirmed["candidates"][self.confirmed["chosen"]]["point"])

    def _begin(self) -> None:
        """Choose what the settings leave open, and write down what the run is made of."""
        self.problem.choose_modes(self.algorithm.pop_size)
        self.problem.resolve_constraints()
        found = {"dtype": self.dtype, "mode": dict(self.problem.modes)}
        found |= chosen(self.settings, self.tasks, self.problem.objective)
        found |= chosen_batches(self.settings, self.problem)
        if self.problem.chat_date is not None:
            found["chat_date"] = self.problem.chat_date.isoformat()
        self.settings = self.settings.model_copy(update=found)
        made = made_with(self.problem.language_model, self.tasks.dev)
        write_inputs(
            self.out,
            self.settings,
            self.digests,
            made,
            self.notes,
            self.folder,
            self.commits,
            self.overrides or (),
        )
        self.saved = self.settings  # now the folder is a run

    def score_rows(self, best: torch.Tensor) -> list[ScoreRow]:
        """The rows of the final table: base, every expert, average, RegMean, and the best merge.

        :param best: `(n g,)` effective coefficients.
        """
        candidate = Candidate(self.settings.algorithm, best.cpu())
        known = earlier_rows(self.out)
        rows = score_rows(self.problem, self.tasks, candidate, self.records, known)
        settings, trial = self.settings.trial_settings, self.try_training()
        if settings is not None and settings.row and trial is not None:
            seed = self.settings.seed
            trained = score_trained(
                self.problem, self.tasks, trial, settings, best.cpu(), seed, self.out
            )
            rows.insert(-1, trained)  # the merge stays last
        return rows

    def finish(self, best: torch.Tensor, rows: Sequence[ScoreRow]) -> dict:
        """Export the best merge, and write what the run folder holds in the end.

        :param best: `(n g,)` effective coefficients.
        :param rows: of the final table.
        :return: what `result.json` holds.
        """
        return finish_run(self, best, rows)

    def result(self) -> dict:
        """What `result.json` of this finished run holds."""
        return read_result(self.out)
