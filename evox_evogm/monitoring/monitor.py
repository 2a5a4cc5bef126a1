"""EvoX's monitor for problems whose first column of fitness is the fitness.

With outcomes, problems return `(P, 1 + S)` columns. EvoX's `EvalMonitor` takes them as objectives,
so that `get_best_fitness`, `get_topk_fitness` and `plot` refuse them.
"""

# EvoX first: it registers the plugin, for which it imports this package.
import evox  # noqa: F401  isort: skip

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from evox.core import Mutable, Problem
from evox.utils import register_vmap_op
from evox.workflows import EvalMonitor

from evox_evogm.monitoring.budget import Budget, parse_budget
from evox_evogm.monitoring.callbacks import Callback
from evox_evogm.monitoring.recorder import Recorder

BEGIN, POPULATION, STEP, OUTCOMES, END = range(5)  # what a recorder is told
RECORDERS: dict[int, Recorder] = {}  # by the number of their monitor


class MergeMonitor(EvalMonitor):
    """An `EvalMonitor` in which column 0 is the fitness, with scores by task, display and journal.

        monitor = MergeMonitor(problem=problem)
        workflow = StdWorkflow(algorithm, problem, monitor, opt_direction="max")

    - **Fitness**: `get_best_fitness`, `get_topk_fitness`, `get_fitness_history` and `plot` are
      about the first column. With `multi_obj=True` all columns are objectives, as in EvoX.
    - **Tasks**: of a `LoRAMergeProblem`, `get_task_history` has the scores by task.
    - **Callbacks** are called with a `Progress` after every evaluation: displays, trackers
      (`evox_evogm.monitoring.trackers`) and functions of yours. One that fails is left out.
    - **Journal**: `history.jsonl`, the lines that `ResumableSearch` writes. That one also goes on
      with a search, from such a journal too. One point alone is written when its step is over.
    - Steps can be compiled and vmapped. Many runs at once have no display and no journal.
    """

    def __init__(
        self,
        multi_obj: bool = False,
        full_fit_history: bool = True,
        full_sol_history: bool = False,
        full_pop_history: bool = False,
        topk: int = 1,
        device: torch.device | None = None,
        history_device: torch.device | None = None,
        *,
        problem: Problem | None = None,
        full_outcome_history: bool = False,
        callbacks: Sequence[Callback] = (),
        display: bool = False,
        journal: str | Path | None = None,
        budget: int | str | None = None,
    ):
        """Set up the monitor. The first seven arguments are those of `EvalMonitor`.

        :param multi_obj: whether all columns of fitness are objectives.
        :param problem: a problem that reports its evaluations, such as `LoRAMergeProblem`, whose
            scores by task are kept.
        :param full_outcome_history: whether the other columns of fitness are kept.
        :param callbacks: each is called with a `Progress` after every evaluation.
        :param display: show the progress: on a terminal live, elsewhere in lines.
        :param journal: a folder for `history.jsonl`, without one until now.
        :param budget: evaluations, or a time such as `"20min"`, for the time that is left.
        :raises ValueError: if the problem reports no evaluations, or the folder holds a history.
        """
        super().__init__(
            multi_obj,
            full_fit_history,
            full_sol_history,
            full_pop_history,
            topk,
            device,
            history_device,
        )
        if problem is not None and not hasattr(problem, "on_evaluations"):
            raise ValueError(
                "problem: expected one that reports evaluations (on_evaluations), such as "
                f"LoRAMergeProblem, found {type(problem).__name__}; leave it out"
            )
        self.several_objectives = multi_obj
        self.full_outcome_history = full_outcome_history
        limit = Budget() if budget is None else parse_budget(budget)
        shown = [*callbacks, _display(problem)] if display else list(callbacks)
        recorder = Recorder(
            shown,
            None if journal is None else Path(journal),
            limit,
            by_candidates=problem is not None,
            several_objectives=multi_obj,
        )
        self.by_candidates, self.has_outputs = recorder.by_candidates, recorder.has_outputs
        self.latest_points = Mutable(torch.empty(0, device=self.device))
        self._told = Mutable(torch.tensor(0, device=self.device))
        RECORDERS[self._id_] = recorder
        weakref.finalize(self, _forget, self._id_)
        if problem is not None:
            _subscribe(problem, recorder)

    def __init_subclass__(cls, **options: Any) -> None:
        """Have EvoX call `record_auxiliary`, which it looks for in a monitor's class itself."""
        super().__init_subclass__(**options)
        if "record_auxiliary" not in cls.__dict__:
            cls.record_auxiliary = cls.record_auxiliary  # type: ignore[method-assign]

    @property
    def recorder(self) -> Recorder:
        """What is kept outside of the tensors."""
        return RECORDERS[self._id_]

    def set_config(self, **config: Any) -> "MergeMonitor":
        """Set what the workflow knows, such as `opt_direction`, a tensor of 1 or -1."""
        super().set_config(**config)
        if "multi_obj" in config:
            self.several_objectives = config["multi_obj"]
            self.recorder.several_objectives = config["multi_obj"]
        if self.opt_direction.numel() == 1:
            self.recorder.minimised = bool(self.opt_direction > 0)
        return self

    def pre_eval(self, transformed_candidate_solution: torch.Tensor) -> None:
        """Keep the `(P, n)` points that the problem gets."""
        if self.has_outputs and isinstance(transformed_candidate_solution, torch.Tensor):
            self.latest_points = transformed_candidate_solution
            self._tell(BEGIN, points=transformed_candidate_solution)

    def post_eval(self, fitness: torch.Tensor) -> None:
        """Write down the `(P,)` or `(P, M)` fitness that the problem gives."""
        if self.by_candidates:
            self._tell(END, fitness)
        elif self.has_outputs:
            points = self.latest_points
            if len(points) != len(fitness):  # the workflow is distributed: these are a share
                points = self.latest_solution
            self._tell(POPULATION, fitness, points)

    def pre_tell(self, fitness: torch.Tensor) -> None:
        """Record the fitness `(P,)`, or of `(P, 1 + S)` columns the first, minimised."""
        if fitness.ndim == 2 and not self.several_objectives:
            if self.full_outcome_history:
                self._tell(OUTCOMES, self.opt_direction.to(fitness.device) * fitness[:, 1:])
            fitness = fitness[:, 0]
        super().pre_tell(fitness)

    # Without this method here, EvoX's workflow would not call that of the base class.
    def record_auxiliary(self, aux: dict[str, torch.Tensor]) -> None:
        """Record what the algorithm says of a step."""
        if self.has_outputs:
            self._tell(STEP)
        super().record_auxiliary(aux)

    def get_task_history(self) -> dict[str, list[torch.Tensor]]:
        """The scores of all evaluated merges by task, as the problem gives them.

        :return: by the name of a task a `(P,)` tensor for each population.
        :raises ValueError: if the monitor was not given a problem that reports them.
        """
        if not self.by_candidates:
            raise ValueError(
                "get_task_history: expected MergeMonitor(problem=...), found no problem"
            )
        return self.recorder.tasks

    def get_outcome_history(self) -> list[torch.Tensor]:
        """The columns of fitness beside the first.

        :return: a `(P, S)` tensor for each population.
        :raises ValueError: if the monitor was made without `full_outcome_history=True`.
        """
        if not self.full_outcome_history:
            raise ValueError(
                "get_outcome_history: expected MergeMonitor(full_outcome_history=True), found False"
            )
        return self.recorder.outcomes

    def close(self) -> None:
        """End displays and trackers, and let another process have the journal."""
        self.recorder.close()

    def __enter__(self) -> "MergeMonitor":
        return self

    def __exit__(self, *error) -> None:
        self.recorder.close(*error)

    def _tell(
        self, what: int, values: torch.Tensor | None = None, points: torch.Tensor | None = None
    ) -> None:
        nothing = self._told.new_empty(0)
        values = nothing if values is None else values
        points = nothing if points is None else points
        self._told = _tell_recorder(self._id_, what, points, values, self._told)


def _fake(monitor: int, what: int, points: torch.Tensor, values: torch.Tensor, told: torch.Tensor):
    return told.new_empty(told.size())


def _tell_of_many_runs(
    monitor: int, what: int, points: torch.Tensor, values: torch.Tensor, told: torch.Tensor
) -> torch.Tensor:
    """`_tell_recorder` under vmap, with a further dimension in front."""
    recorder = RECORDERS[monitor]
    if recorder.has_outputs:
        raise ValueError(
            "monitor: expected one run with display, callbacks or journal, found many under vmap"
        )
    if what == OUTCOMES:
        recorder.outcomes.append(values.detach().cpu().clone())
    return told + 1


# An operator, which compiled code calls and looks into no further.
@register_vmap_op(fake_fn=_fake, vmap_fn=_tell_of_many_runs, fake_vmap_fn=_fake)
def _tell_recorder(
    monitor: int, what: int, points: torch.Tensor, values: torch.Tensor, told: torch.Tensor
) -> torch.Tensor:
    """Tell a recorder what happens.

    :param monitor: the number of the monitor.
    :param what: BEGIN, POPULATION, STEP, OUTCOMES or END.
    :param points: a `(P, n)` tensor; empty if there are none.
    :param values: a `(P,)` or `(P, M)` tensor; empty if there are none.
    :param told: how often it was told something, which keeps calls in their order.
    """
    recorder = RECORDERS[monitor]
    if what == BEGIN:
        recorder.begin_evaluation(len(points))
    elif what == POPULATION:
        recorder.note_population(points.detach(), values.detach())
    elif what == STEP:
        recorder.end_step()
    elif what == OUTCOMES:
        recorder.outcomes.append(values.detach().cpu().clone())
    else:
        recorder.end_population(len(values))
    return told + 1


def _subscribe(problem: Any, recorder: Recorder) -> None:
    """Have a problem report its evaluations to a recorder, and to whom it did before."""
    before = problem.on_evaluations

    def report(evaluations: list) -> None:
        recorder.note_candidates(evaluations)
        if before is not None:
            before(evaluations)

    problem.on_evaluations = report


def _display(problem: Any) -> Callback:
    """A display of a search, with the names of the experts where there are some."""
    from rich.console import Console

    from evox_evogm.monitoring.display.choose import show_progress
    from evox_evogm.monitoring.display.facts import RunFacts

    experts: list[str] = []
    used: list[bool] = []
    groups = 1
    if hasattr(problem, "experts"):
        experts = [expert.name for expert in problem.experts]
        groups = problem.groups.count
        used = problem.scorer.used_coefficients.tolist()
    console = Console(markup=False, highlight=False, emoji=False)
    notes = getattr(problem, "notes", [])
    return show_progress(console, RunFacts(experts, groups, notes, used))


def _forget(monitor: int) -> None:
    recorder = RECORDERS.pop(monitor, None)
    if recorder is not None:
        recorder.close()
