"""Checks of what `LoRAMergeProblem` is given: each raises a `ValueError` of one sentence."""

from collections.abc import Mapping, Sequence

import torch

from evox_evogm.problems.cost_model import MODES
from evox_evogm.problems.functions.function_scorer import functions_of
from evox_evogm.problems.objectives import OBJECTIVES
from evox_evogm.problems.racing import Racing
from evox_evogm.problems.scalarization import Objective
from evox_evogm.problems.tasks.custom_task import CustomTask
from evox_evogm.problems.tasks.task import Task


def check_tasks(tasks: Sequence[Task]) -> None:
    """Refuse no tasks, and tasks of the same name."""
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"tasks: expected at least one, with different names, found {names}; dev and test "
            "tasks of one name are scored by two calls"
        )


def check_modes(mode, tasks: Sequence[Task]) -> dict[str, str]:
    """The modes that the argument `mode` of `LoRAMergeProblem` names.

    :param mode: `"auto"`, a mode, or a mapping of task names to modes.
    :return: the mode of every task that has one, by name.
    :raises ValueError: if a mode or a task is unknown.
    """
    if mode == "auto":
        return {}
    names = [task.name for task in tasks]
    modes = dict(mode) if isinstance(mode, Mapping) else dict.fromkeys(names, mode)
    for name, chosen in modes.items():
        if name not in names:
            raise ValueError(f"mode: expected names of tasks ({', '.join(names)}), found {name!r}")
        if chosen not in MODES:
            raise ValueError(f'mode: expected "auto", "unmerged" or "merged", found {chosen!r}')
    return modes


def check_candidates_at_once(count) -> None:
    """Refuse what is neither None nor a whole number of at least 1."""
    if count is None:
        return
    if not isinstance(count, int) or count < 1:
        raise ValueError(
            f"candidates_at_once: expected a whole number of at least 1, found {count!r}"
        )


def check_objectives(objectives, racing: Racing | None, modes: Mapping[str, str]) -> None:
    """Refuse unknown objectives, racing where no merge is the best, and gradients when merged.

    :param modes: those of tasks that have one.
    """
    if objectives not in OBJECTIVES:
        raise ValueError(f"objectives: expected {', '.join(OBJECTIVES)}, found {objectives!r}")
    if racing is not None and objectives not in ("mean", "outcomes"):
        raise ValueError(
            f"racing: expected objectives mean or outcomes, found {objectives!r}: pruning needs a "
            "best merge, and gradients need all examples"
        )
    if objectives == "gradients" and "merged" in modes.values():
        raise ValueError(
            'mode: expected "auto" or "unmerged" with gradients, which are those of the '
            "coefficients of rows, found 'merged'"
        )


def check_minibatches(minibatches, objectives, tasks: Sequence[Task]) -> None:
    """Refuse minibatches without gradients, and more than a task has examples."""
    if not isinstance(minibatches, int) or minibatches < 1:
        expected = "expected a whole number of at least 1"
        raise ValueError(f"minibatches: {expected}, found {minibatches!r}")
    if minibatches > 1 and objectives != "gradients":
        raise ValueError(
            f"minibatches: expected 1 with objectives {objectives!r}, found {minibatches}: scores "
            "on different examples cannot be compared"
        )
    for task in tasks:
        if 0 < len(task.examples) < minibatches:
            expected = f"expected at most {len(task.examples)}, the examples of task {task.name!r}"
            raise ValueError(f"minibatches: {expected}, found {minibatches}")


def check_functions(tasks: Sequence[Task], objectives, racing: Racing | None) -> None:
    """Refuse functions where a part of the examples, or a derivative, is needed."""
    for task in functions_of(tasks):
        if racing is not None:
            raise ValueError(
                f"racing: expected tasks with examples, found the function {task.source!r}, which "
                "cannot be called for a part of them"
            )
        if objectives == "gradients":
            raise ValueError(
                f"task {task.name!r}: expected a task with derivatives for gradients, found the "
                f"function {task.source!r}"
            )


def check_custom(tasks: Sequence[Task], objectives, racing: Racing | None) -> None:
    """Refuse tasks without derivatives where they are needed, and such as are scored as a whole."""
    for task in tasks:
        if not isinstance(task, CustomTask):
            continue
        if racing is not None and not task.scores_by_example:
            raise ValueError(
                f"racing: expected tasks that are scored example by example, found {task.name!r} "
                f"with the metric {task.metric} of all examples together"
            )
        if objectives == "gradients" and task.no_derivatives is not None:
            raise ValueError(
                f"task {task.name!r}: expected a task with derivatives for gradients, found that "
                f"{task.no_derivatives}"
            )


def check_objective(objective: Objective, objectives, racing: Racing | None) -> None:
    """Refuse an objective that is no mean where merges are compared by examples or outcomes."""
    if racing is not None and not objective.is_plain_mean:
        raise ValueError(
            "racing: expected the plain mean over tasks, found weights, constraints or "
            f"objective {objective.kind!r}, by which examples are not compared one by one"
        )
    if objectives in ("outcomes", "gradients") and not objective.is_weighted_mean:
        found = "constraints" if objective.constraints else f"objective {objective.kind!r}"
        raise ValueError(
            f"objectives: expected a weighted mean over tasks for {objectives}, which add up, "
            f"found {found}"
        )


def check_width(pop: torch.Tensor, n: int, groups: int) -> None:
    """Refuse a population that has not n g columns.

    :param groups: g.
    """
    if pop.ndim == 2 and pop.shape[1] == n * groups:
        return
    each = "per expert" if groups == 1 else f"for each of {n} experts and {groups} groups"
    raise ValueError(
        f"pop: expected (P, {n * groups}), one column {each}, found {tuple(pop.shape)}"
    )


def check_no_transform(pop: torch.Tensor) -> None:
    """Refuse a population that stands for several, as inside torch.vmap, or for a derivative."""
    if torch._C._functorch.is_functorch_wrapped_tensor(pop):
        raise ValueError(
            "pop: expected one population, found a tensor inside torch.vmap or another transform "
            "of torch.func (EvoX's HPOProblemWrapper uses vmap); merges are scored by a language "
            "model outside of torch's transforms, so run such searches one after the other"
        )
