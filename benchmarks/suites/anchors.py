"""What a search takes place around, other than the base: the RegMean merge of the experts."""

from collections.abc import Callable, Sequence
from pathlib import Path

from evox_evogm.problems import Task

REGMEANS = ("tasks", "prompts", "weights")


def regmean_setting(
    kind: str, folders: Sequence[Path], dev: Sequence[Task], task_of_expert: Callable[[str], str]
) -> dict:
    """The argument `regmean` of `LoRAMergeProblem`, or none.

    :param kind: one of `REGMEANS`, or `""` for experts as they are. With `"tasks"` every expert is
        regressed on the dev questions of its own task and their answers.
    :param folders: of the experts.
    :param dev: the dev tasks.
    :param task_of_expert: gives the name of an expert's own task.
    """
    if kind != "tasks":
        return {"regmean": kind} if kind else {}
    by_name = {task.name: task for task in dev}
    return {"regmean": {path.name: [by_name[task_of_expert(path.name)]] for path in folders}}
